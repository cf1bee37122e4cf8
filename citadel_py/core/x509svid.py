"""X509SVID: a workload's certificate chain and the SPIFFE ID it carries. A value; verify.py makes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py.core.pem import certificate_pem, certificate_pem_of_der
from citadel_py.core.spiffe import SpiffeID


@dataclass(frozen=True, slots=True)
class X509SVID:
    """A chain that was issued or verified: leaf first, then intermediates, never the root.

    Making one checks nothing: take it from the issuer or from `verify_svid`.
    """

    id: SpiffeID
    chain: tuple[x509.Certificate, ...]
    leaf_der: bytes = field(default=b"", repr=False, compare=False)  # written by the library where not given

    def __post_init__(self) -> None:
        if not self.leaf_der:
            object.__setattr__(self, "leaf_der", self.leaf.public_bytes(Encoding.DER))

    @property
    def leaf(self) -> x509.Certificate:
        """The workload's own certificate."""
        return self.chain[0]

    @property
    def serial(self) -> str:
        """The leaf's serial number in lower-case hex."""
        return f"{self.leaf.serial_number:x}"

    @property
    def not_before(self) -> datetime:
        """The leaf's not before, aware UTC."""
        return self.leaf.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """The leaf's not after, aware UTC."""
        return self.leaf.not_valid_after_utc

    @property
    def authority_id(self) -> str:
        """Hex key id of the authority that signed the leaf (RFC 5280 4.2.1.1); empty if the leaf names none."""
        try:
            extension = self.leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        except x509.ExtensionNotFound:
            return ""
        return (extension.value.key_identifier or b"").hex()

    @property
    def leaf_pem(self) -> bytes:
        """The leaf as one PEM block."""
        return certificate_pem_of_der(self.leaf_der)

    def pem_elements(self) -> list[bytes]:
        """One PEM block per certificate, leaf first, each ending in exactly one newline."""
        return [self.leaf_pem, *map(certificate_pem, self.chain[1:])]

    def chain_pem(self) -> bytes:
        """The chain as one PEM text, leaf first, without the root."""
        return b"".join(self.pem_elements())
