"""A small certificate factory: good SVIDs by default, any part of them replaceable, and DER to splice by hand.

It is independent of the program's own profile: what is judged here is not what it makes itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from cryptography.x509.oid import NameOID

from citadel_py.core.bundle import Bundle
from citadel_py.core.keys import PrivateKey, signing_hash
from citadel_py.core.spiffe import TrustDomain

NOW = datetime(2026, 11, 20, 13, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
SKIP = None  # an extension that is left out
USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
          "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
Extension: TypeAlias = tuple[x509.ExtensionType, bool]  # and whether it is critical
Change: TypeAlias = Extension | x509.Name | datetime | int | Sequence[str] | None
Edit: TypeAlias = Callable[[list[bytes]], None]
SHA256_ECDSA = bytes.fromhex("300a06082a8648ce3d040302")
SHA1_ECDSA = bytes.fromhex("300906072a8648ce3d0401")


@cache
def key(kind: str, _slot: str = "") -> PrivateKey:
    """The key of that kind and slot; the same one each time, because RSA keys are slow to make."""
    if kind.startswith("rsa"):
        size, _, exponent = kind.removeprefix("rsa").partition("e")
        return rsa.generate_private_key(int(exponent or 65537), int(size))
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1(), "k1": ec.SECP256K1()}
    return ec.generate_private_key(curves[kind])


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def usage(*bits: str, critical: bool = True) -> Extension:
    return x509.KeyUsage(**{each: each in bits for each in USAGES}), critical


def purposes(*oids: x509.ObjectIdentifier, critical: bool = False) -> Extension:
    return x509.ExtendedKeyUsage(oids), critical


def constraints(*, ca: bool, length: int | None = None, critical: bool = True) -> Extension:
    return x509.BasicConstraints(ca, length), critical


def names(*uris: str, others: Sequence[x509.GeneralName] = (), critical: bool = True) -> Extension:
    return x509.SubjectAlternativeName([*map(x509.UniformResourceIdentifier, uris), *others]), critical


def unknown(*, critical: bool, size: int = 2) -> Extension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(size)), critical


def permits(*permitted: x509.GeneralName) -> Extension:
    return x509.NameConstraints(permitted, None), True


def excludes(*excluded: x509.GeneralName) -> Extension:
    return x509.NameConstraints(None, excluded), True


@dataclass(frozen=True)
class Entity:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def bundle(self) -> Bundle:
        return Bundle(TrustDomain("example.org"), (self.certificate,))


@dataclass(frozen=True)
class Pki:
    """Root and intermediate as the project's pages describe them, and makers for everything else."""

    root: Entity = field(init=False)
    intermediate: Entity = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.authority("root"))
        object.__setattr__(self, "intermediate", self.authority("intermediate", self.root, length=0))

    @property
    def bundle(self) -> Bundle:
        return self.root.bundle

    def authority(
        self,
        common_name: str,
        parent: Entity | None = None,
        *,
        kind: str = "p256",
        slot: str = "",
        length: int | None = 1,
        uris: Sequence[str] = ("spiffe://example.org",),
        **changes: Change,
    ) -> Entity:
        """A root, or an intermediate under `parent`. `changes` replace extensions and fields by name."""
        own = key(kind, slot or common_name)
        parts: dict[str, Change] = {
            "subject": name(common_name),
            "issuer": parent.certificate.subject if parent else name(common_name),
            "not_before": NOW - 1000 * HOUR,
            "not_after": NOW + 1000 * HOUR,
            "constraints": constraints(ca=True, length=length),
            "usage": usage("key_cert_sign", "crl_sign"),
            "names": names(*uris, critical=False) if uris else SKIP,
            "ski": (x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False),
            "aki": _aki(parent.key) if parent else SKIP,
        }
        return _issue({**parts, **changes}, own, parent.key if parent else own)

    def leaf(
        self,
        issuer: Entity | None = None,
        *,
        kind: str = "p256",
        uris: Sequence[str] = ("spiffe://example.org/ns/a/sa/b",),
        **changes: Change,
    ) -> Entity:
        """An SVID under `issuer`, the intermediate by default. `changes` as above."""
        signer, own = issuer or self.intermediate, key(kind, "leaf")
        parts: dict[str, Change] = {
            "subject": name(""),
            "issuer": signer.certificate.subject,
            "not_before": NOW - HOUR,
            "not_after": NOW + HOUR,
            "constraints": constraints(ca=False),
            "usage": usage("digital_signature"),
            "purposes": purposes(Purpose.SERVER_AUTH, Purpose.CLIENT_AUTH),
            "names": names(*uris),
            "aki": _aki(signer.key),
        }
        return _issue({**parts, **changes}, own, signer.key)

    def chain(self, *authorities: Entity, **changes: Any) -> list[x509.Certificate]:
        """A leaf with `changes` under the first of `authorities`, and these; the intermediate by default."""
        line = authorities or (self.intermediate,)
        return [self.leaf(line[0], **changes).certificate, *(each.certificate for each in line)]

    def spliced(self, edit: Edit, **changes: Any) -> list[x509.Certificate]:
        """A chain whose leaf has had the fields of its TBSCertificate edited, and was signed again."""
        leaf = self.leaf(**changes)
        return [splice(leaf.certificate, self.intermediate, edit), self.intermediate.certificate]


def _aki(signer: PrivateKey) -> Extension:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False


def _issue(parts: dict[str, Any], own: PrivateKey, signer: PrivateKey) -> Entity:
    fields = {each: parts.pop(each) for each in ("subject", "issuer", "not_before", "not_after")}
    builder = x509.CertificateBuilder(
        fields["issuer"],
        fields["subject"],
        own.public_key(),
        x509.random_serial_number(),
        fields["not_before"],
        fields["not_after"],
    )
    for extension, critical in filter(None, parts.values()):
        builder = builder.add_extension(extension, critical)
    return Entity(builder.sign(signer, signing_hash(signer)), own)


# ------------------------------------------------------------------ DER, for what the builder refuses to make


def tlv(tag: int, *parts: bytes) -> bytes:
    """One DER element (X.690 8.1)."""
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def children(element: bytes) -> list[bytes]:
    """The elements inside one DER element, each with its tag and length."""
    found, rest = [], element[_header(element) :]
    while rest:
        size = _header(rest) + _length(rest)
        found.append(rest[:size])
        rest = rest[size:]
    return found


def splice(certificate: x509.Certificate, signer: Entity, edit: Edit) -> x509.Certificate:
    """The certificate with `edit` done to the fields of its TBSCertificate, signed again (SHA-1 where it says so)."""
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    fields = children(certificate.tbs_certificate_bytes)
    edit(fields)
    tbs, algorithm = tlv(0x30, *fields), SHA1_ECDSA if SHA1_ECDSA in fields else SHA256_ECDSA
    signature = signer.key.sign(tbs, ec.ECDSA(hashes.SHA1() if algorithm == SHA1_ECDSA else hashes.SHA256()))  # noqa: S303 - that it is refused is the point
    return load(tlv(0x30, tbs, algorithm, tlv(0x03, b"\0", signature)))


def load(der: bytes) -> x509.Certificate:
    with warnings.catch_warnings():  # of serial numbers that are not positive
        warnings.simplefilter("ignore")
        return x509.load_der_x509_certificate(der)


def edit_extensions(change: Edit) -> Edit:
    """An edit of the list of extensions, the last field of a TBSCertificate."""

    def edit(fields: list[bytes]) -> None:
        extensions = children(children(fields[-1])[0])
        change(extensions)
        fields[-1] = tlv(0xA3, tlv(0x30, *extensions))

    return edit


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _header(element: bytes) -> int:
    return 2 if element[1] < 0x80 else 2 + (element[1] & 0x7F)


def _length(element: bytes) -> int:
    return element[1] if element[1] < 0x80 else int.from_bytes(element[2 : _header(element)], "big")
