"""Whatever a file holds, piece by piece, as facts: PEM blocks, DER, SPIFFE bundles, PKCS#12, directories.

A piece that cannot be read becomes an `unreadable` one, and the others are shown all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from citadel_py.cli.describe import Facts, certificate_facts, csr_facts, error_facts, public_key_facts
from citadel_py.core.bundle import Bundle, BundleSet
from citadel_py.core.csr import parse_csr
from citadel_py.core.errors import BadInput, CitadelError, InvalidConfiguration, InvalidKey
from citadel_py.core.keys import load_private_key
from citadel_py.core.pem import UNREADABLE, load_certificate, load_certificates
from citadel_py.core.spiffe import TrustDomain

UNREADABLE_TYPE = "unreadable"

_Read: TypeAlias = Callable[[bytes], Iterator[Facts]]

_BLOCK = re.compile(rb"-----BEGIN ([^\r\n]{0,64}?)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_AUTHORITY_FILES = ("bundle.json", "intermediate/tls.crt", "intermediate/tls.key", "root/tls.key")
_OTHER_FILES = ("ca.crt", "tls.crt", "tls.key", "tls.p12", "root/tls.crt", "root/tls.key")
_NAMELESS = TrustDomain("bundle")  # a bundle does not say whose it is, and nothing here depends on it


class Unreadable(BadInput):
    """Not anything that is known here."""

    code = "unreadable"


def files_of(directory: Path) -> tuple[Path, ...]:
    """The files of an authority's or a workload's directory. Raises InvalidConfiguration (`nothing_to_inspect`)."""
    names = _AUTHORITY_FILES if (directory / "bundle.json").exists() else _OTHER_FILES
    found = tuple(directory / name for name in names if (directory / name).exists())
    if not found:
        raise InvalidConfiguration(
            f"{directory} holds none of {', '.join(_OTHER_FILES)}", rule="nothing_to_inspect", hint="name a file in it"
        )
    return found


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads pieces as of `now`. `passphrase` opens keys and PKCS#12."""

    now: datetime
    passphrase: bytes | None = None

    def read(self, data: bytes) -> Iterator[Facts]:
        """The facts of each piece; of one that cannot be read, `type` is `unreadable` and `error` says why."""
        for read_piece, piece in self._split(data):
            try:
                yield from read_piece(piece)
            except CitadelError as error:
                yield {"type": UNREADABLE_TYPE, "error": error_facts(error)}
            except UNREADABLE as error:
                yield {"type": UNREADABLE_TYPE, "error": error_facts(Unreadable(f"cannot be read: {str(error)[:200]}"))}

    def _split(self, data: bytes) -> Iterator[tuple[_Read, bytes]]:
        blocks = list(_BLOCK.finditer(data))
        if not blocks:
            yield (self._bundle if data.lstrip()[:1] == b"{" else self._der), data
        for block in blocks:
            yield self._reader_of(block[1].decode("latin-1")), block[0]

    def _reader_of(self, label: str) -> _Read:
        if label in ("CERTIFICATE", "X509 CERTIFICATE"):
            return self._certificates
        if label in ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"):
            return self._csr
        if label.endswith("PRIVATE KEY"):
            return self._private_key
        return self._public_key if label == "PUBLIC KEY" else lambda _piece: iter([{"type": "other", "label": label}])

    def _certificates(self, pem: bytes) -> Iterator[Facts]:
        for certificate in load_certificates(pem):
            yield certificate_facts(certificate, now=self.now)

    def _csr(self, pem: bytes) -> Iterator[Facts]:
        try:
            csr = x509.load_pem_x509_csr(pem)
        except UNREADABLE:
            parse_csr(pem)  # knows better why
            raise
        yield csr_facts(csr, pem)

    def _private_key(self, pem: bytes) -> Iterator[Facts]:
        try:
            key = load_private_key(pem)
        except InvalidKey as error:
            if error.rule != "key_passphrase_missing":
                raise
            yield _key_facts(load_private_key(pem, self.passphrase) if self.passphrase else None, is_encrypted=True)
        else:
            yield _key_facts(key, is_encrypted=False)

    def _public_key(self, pem: bytes) -> Iterator[Facts]:
        yield {"type": "public_key", "key": public_key_facts(serialization.load_pem_public_key(pem))}

    def _bundle(self, json: bytes) -> Iterator[Facts]:
        """One bundle, or a map of them; after each come its authorities."""
        if b'"trust_domains"' not in json:
            yield from self._bundle_facts(Bundle.from_jwks(_NAMELESS, json), name=None)
            return
        for bundle in BundleSet.from_json(json):
            yield from self._bundle_facts(bundle, name=bundle.trust_domain.name)

    def _bundle_facts(self, bundle: Bundle, *, name: str | None) -> Iterator[Facts]:
        hint = bundle.refresh_hint
        yield {
            "type": "bundle",
            "trust_domain": name,
            "sequence": bundle.sequence,
            "refresh_hint_seconds": int(hint.total_seconds()) if hint else None,
            "authorities": len(bundle.authorities),
        }
        for authority in bundle.authorities:
            yield certificate_facts(authority, now=self.now)

    def _der(self, der: bytes) -> Iterator[Facts]:
        for read_kind in (
            self._der_certificate,
            self._der_csr,
            self._der_private_key,
            self._der_public_key,
            self._pkcs12,
        ):
            try:
                yield from list(read_kind(der))
            except (CitadelError, *UNREADABLE):
                continue
            return
        raise Unreadable(
            "neither PEM nor a certificate, CSR, key, bundle or PKCS#12 in a form that is known",
            hint="PKCS#12 and encrypted keys need --passphrase-file FILE",
        )

    def _der_certificate(self, der: bytes) -> Iterator[Facts]:
        yield certificate_facts(load_certificate(der), now=self.now)

    def _der_csr(self, der: bytes) -> Iterator[Facts]:
        yield csr_facts(x509.load_der_x509_csr(der), der)

    def _der_private_key(self, der: bytes) -> Iterator[Facts]:
        try:
            yield _key_facts(serialization.load_der_private_key(der, None), is_encrypted=False)
        except TypeError:  # how the library says that it is encrypted
            key = serialization.load_der_private_key(der, self.passphrase) if self.passphrase else None
            yield _key_facts(key, is_encrypted=True)

    def _der_public_key(self, der: bytes) -> Iterator[Facts]:
        yield {"type": "public_key", "key": public_key_facts(serialization.load_der_public_key(der))}

    def _pkcs12(self, der: bytes) -> Iterator[Facts]:
        store = pkcs12.load_pkcs12(der, self.passphrase)
        for held in (store.cert, *store.additional_certs):
            if held:
                yield certificate_facts(held.certificate, now=self.now)
        if store.key:
            yield _key_facts(store.key, is_encrypted=True)


def _key_facts(key: object, *, is_encrypted: bool) -> Facts:
    """Of a private key only its kind and the hash of its public half are ever shown."""
    public_key = getattr(key, "public_key", None)
    return {
        "type": "private_key",
        "is_encrypted": is_encrypted,
        "key": public_key_facts(public_key()) if public_key else None,
    }
