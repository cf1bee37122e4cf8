"""A small certificate factory: good SVIDs by default, any part of them replaceable, and DER to splice by hand.

It is independent of the program's own profile: what is judged here is not what it makes itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from cryptography.x509.oid import NameOID

from citadel_py.core.bundle import Bundle
from citadel_py.core.spiffe import TrustDomain

NOW = datetime(2026, 11, 20, 13, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
SKIP: Any = None  # an extension that is left out
USAGES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
    "key_cert_sign crl_sign encipher_only decipher_only"
).split()
SHA256_ECDSA = bytes.fromhex("300a06082a8648ce3d040302")
SHA1_ECDSA = bytes.fromhex("300906072a8648ce3d0401")


@cache
def key(kind: str, slot: str = "") -> Any:
    """The key of that kind and slot; the same one each time, because RSA keys are slow to make."""
    if kind.startswith("rsa"):
        size, _, exponent = kind.removeprefix("rsa").partition("e")
        return rsa.generate_private_key(int(exponent or 65537), int(size))
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curve = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1, "k1": ec.SECP256K1}[kind]
    return ec.generate_private_key(curve())


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def usage(*bits: str, critical: bool = True) -> tuple[x509.KeyUsage, bool]:
    return x509.KeyUsage(**{each: each in bits for each in USAGES}), critical


def purposes(*oids: x509.ObjectIdentifier, critical: bool = False) -> tuple[x509.ExtendedKeyUsage, bool]:
    return x509.ExtendedKeyUsage(oids), critical


def constraints(ca: bool, length: int | None = None, *, critical: bool = True) -> tuple[x509.BasicConstraints, bool]:  # noqa: FBT001 - as the extension itself
    return x509.BasicConstraints(ca, length), critical


def names(*uris: str, others: Sequence[x509.GeneralName] = (), critical: bool = True) -> tuple[Any, bool]:
    return x509.SubjectAlternativeName([*map(x509.UniformResourceIdentifier, uris), *others]), critical


def unknown(*, critical: bool) -> tuple[x509.UnrecognizedExtension, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), critical


def name_constraints(permitted: Any = None, excluded: Any = None) -> tuple[x509.NameConstraints, bool]:
    return x509.NameConstraints(permitted, excluded), True


@dataclass(frozen=True)
class Entity:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any

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
        self, common_name: str, parent: Entity | None = None, *, kind: str = "p256", slot: str = "", length: int | None = 1,
        uris: Sequence[str] = ("spiffe://example.org",), sign: Any = None, **changes: Any,
    ) -> Entity:  # fmt: skip
        """A root, or an intermediate under `parent`. `changes` replace extensions and fields by name."""
        own = key(kind, slot or common_name)
        extensions = {
            "constraints": constraints(True, length),
            "usage": usage("key_cert_sign", "crl_sign"),
            "names": names(*uris, critical=False) if uris else SKIP,
            "ski": (x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False),
            "aki": _aki(parent.key) if parent else SKIP,
        }
        issuer = parent.certificate.subject if parent else name(common_name)
        signer = parent.key if parent else own
        lifetime = {"not_before": NOW - 1000 * HOUR, "not_after": NOW + 1000 * HOUR}
        return _issue(
            {"subject": name(common_name), "issuer": issuer, **lifetime, **changes}, extensions, own, signer, sign
        )

    def leaf(self, issuer: Entity | None = None, *, kind: str = "p256", sign: Any = None, **changes: Any) -> Entity:
        """An SVID under `issuer`, the intermediate by default. `uris` and others change it by name."""
        issuer, own = issuer or self.intermediate, key(kind, "leaf")
        extensions = {
            "constraints": constraints(False),
            "usage": usage("digital_signature"),
            "purposes": purposes(Purpose.SERVER_AUTH, Purpose.CLIENT_AUTH),
            "names": names(*changes.pop("uris", ["spiffe://example.org/ns/a/sa/b"])),
            "aki": _aki(issuer.key),
        }
        fields = {
            "subject": name(""),
            "issuer": issuer.certificate.subject,
            "not_before": NOW - HOUR,
            "not_after": NOW + HOUR,
        }
        return _issue({**fields, **changes}, extensions, own, issuer.key, sign)

    def chain(self, *authorities: Entity, **changes: Any) -> list[x509.Certificate]:
        """A leaf with `changes` under the first of `authorities`, and these; the intermediate by default."""
        line = authorities or (self.intermediate,)
        return [self.leaf(line[0], **changes).certificate, *(each.certificate for each in line)]

    def spliced(self, edit: Callable[[list[bytes]], None], **changes: Any) -> list[x509.Certificate]:
        """A chain whose leaf has had the fields of its TBSCertificate edited, and was signed again."""
        leaf = self.leaf(**changes).certificate
        return [splice(leaf, self.intermediate.key, edit), self.intermediate.certificate]


def _aki(signer: Any) -> tuple[x509.AuthorityKeyIdentifier, bool]:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False


def _issue(fields: dict[str, Any], extensions: dict[str, Any], own: Any, signer: Any, sign: Any) -> Entity:
    known = ("subject", "issuer", "not_before", "not_after", "serial")
    chosen = {**extensions, **{each: value for each, value in fields.items() if each not in known}}
    builder = x509.CertificateBuilder(
        fields["issuer"], fields["subject"], own.public_key(), fields.get("serial", x509.random_serial_number()),
        fields["not_before"], fields["not_after"],
    )  # fmt: skip
    for extension, critical in filter(None, chosen.values()):
        builder = builder.add_extension(extension, critical)
    digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else sign or hashes.SHA256()
    return Entity(builder.sign(signer, digest), own)


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


def splice(certificate: x509.Certificate, signer: Any, edit: Callable[[list[bytes]], None]) -> x509.Certificate:
    """The certificate with `edit` done to the fields of its TBSCertificate, signed again (SHA-1 where it says so)."""
    fields = children(certificate.tbs_certificate_bytes)
    edit(fields)
    tbs, algorithm = tlv(0x30, *fields), SHA1_ECDSA if SHA1_ECDSA in fields else SHA256_ECDSA
    signature = signer.sign(tbs, ec.ECDSA(hashes.SHA1() if algorithm == SHA1_ECDSA else hashes.SHA256()))  # noqa: S303 - that it is refused is the point
    return load(tlv(0x30, tbs, algorithm, tlv(0x03, b"\0", signature)))


def load(der: bytes) -> x509.Certificate:
    with warnings.catch_warnings():  # of serial numbers that are not positive
        warnings.simplefilter("ignore")
        return x509.load_der_x509_certificate(der)


def edit_extensions(change: Callable[[list[bytes]], None]) -> Callable[[list[bytes]], None]:
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
