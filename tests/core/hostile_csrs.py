"""Makes certificate signing requests byte by byte, so that tests can build what no library would.

Only for tests. Everything here is honest DER unless a caller asks for something else; the
signature is always a true one over the bytes as they are, so that a test breaks exactly one rule.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from citadel_py.core.errors import InvalidCSR

Row: TypeAlias = tuple[str, str, Callable[[], bytes]]
SignBytes: TypeAlias = Callable[[bytes], bytes]

DATA = Path(__file__).parent.parent / "data" / "csr"

EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
MICROSOFT_EXTENSION_REQUEST = "1.3.6.1.4.1.311.2.1.14"
CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"

SAN = "2.5.29.17"
BASIC_CONSTRAINTS = "2.5.29.19"
KEY_USAGE = "2.5.29.15"
EXTENDED_KEY_USAGE = "2.5.29.37"


def tlv(tag: int, *parts: bytes) -> bytes:
    """Tag, shortest length, contents."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = (len(body).bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + len(body).to_bytes(size, "big") + body


def sequence(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def set_of(*parts: bytes) -> bytes:
    """In the order given: DER wants them sorted, which is up to the caller."""
    return tlv(0x31, *parts)


def bit_string(data: bytes, unused: int = 0) -> bytes:
    return tlv(0x03, bytes([unused]), data)


def octet_string(data: bytes) -> bytes:
    return tlv(0x04, data)


def oid(dotted: str) -> bytes:
    return asn1.encode_der(x509.ObjectIdentifier(dotted))


def integer(value: int) -> bytes:
    return asn1.encode_der(value)


NULL = b"\x05\x00"
TRUE = b"\x01\x01\xff"
NO_ATTRIBUTES = tlv(0xA0)
EMPTY_NAME = sequence()

ECDSA_SHA256 = sequence(oid("1.2.840.10045.4.3.2"))
RSA_SHA256 = sequence(oid("1.2.840.113549.1.1.11"), NULL)
ED25519 = sequence(oid("1.3.101.112"))
EC_PUBLIC_KEY = "1.2.840.10045.2.1"
P256 = "1.2.840.10045.3.1.7"
RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
RSASSA_PSS = "1.2.840.113549.1.1.10"


def attribute(type_oid: str, *values: bytes) -> bytes:
    return sequence(oid(type_oid), set_of(*values))


def attributes(*members: bytes) -> bytes:
    """The [0] IMPLICIT SET OF Attribute, sorted as DER wants."""
    return tlv(0xA0, *sorted(members))


def extension(type_oid: str, value: bytes, *, critical: bytes = b"") -> bytes:
    return sequence(oid(type_oid), critical, octet_string(value))


def requested(*extensions: bytes, attribute_type: str = EXTENSION_REQUEST) -> bytes:
    """One extensionRequest attribute."""
    return attribute(attribute_type, sequence(*extensions))


def uri(text: bytes) -> bytes:
    return tlv(0x86, text)


def dns(text: bytes) -> bytes:
    return tlv(0x82, text)


def spki(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def ec_spki(point: bytes, curve: bytes | None = None) -> bytes:
    """An EC key of any point bytes and any parameters."""
    return sequence(sequence(oid(EC_PUBLIC_KEY), curve or oid(P256)), bit_string(point))


def rsa_spki(n: int, e: int = 65537, algorithm: bytes | None = None) -> bytes:
    return sequence(algorithm or sequence(oid(RSA_ENCRYPTION), NULL), bit_string(sequence(integer(n), integer(e))))


@cache
def ec_key(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    """The same key for every test: it costs time, and no test is about it."""
    return ec.generate_private_key(curve())


@cache
def rsa_key(bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(exponent, bits)


def prime_moduli() -> tuple[int, ...]:
    """Primes of 2048, 2048, 3072 and 4096 bits, made with `openssl prime -generate`."""
    return tuple(int(line, 16) for line in (DATA / "prime-moduli.txt").read_text().split())


def rsa_key_of(p: int, q: int) -> rsa.RSAPrivateKey:
    """Spares the tests the seconds that it takes to find large primes."""
    n, d = p * q, pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, n)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


def ecdsa(key: ec.EllipticCurvePrivateKey, algorithm: hashes.HashAlgorithm | None = None) -> SignBytes:
    return lambda data: key.sign(data, ec.ECDSA(algorithm or hashes.SHA256()))


def pkcs1(key: rsa.RSAPrivateKey, algorithm: hashes.HashAlgorithm | None = None) -> SignBytes:
    return lambda data: key.sign(data, padding.PKCS1v15(), algorithm or hashes.SHA256())


def pkcs1_by_exponent(n: int, d: int) -> SignBytes:
    """RSASSA-PKCS1-v1_5 with SHA-256 for any modulus and exponent, such as no library would load."""

    def sign(data: bytes) -> bytes:
        digest = hashes.Hash(hashes.SHA256())
        digest.update(data)
        info = sequence(sequence(oid("2.16.840.1.101.3.4.2.1"), NULL), octet_string(digest.finalize()))
        size = (n.bit_length() + 7) // 8
        block = b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info
        return pow(int.from_bytes(block), d, n).to_bytes(size)

    return sign


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A CSR in parts; `der()` signs and joins them."""

    spki: bytes
    sign: SignBytes
    version: bytes = integer(0)
    subject: bytes = EMPTY_NAME
    attributes: bytes = NO_ATTRIBUTES
    algorithm: bytes = ECDSA_SHA256

    def info(self) -> bytes:
        return sequence(self.version, self.subject, self.spki, self.attributes)

    def der(self) -> bytes:
        info = self.info()
        return sequence(info, self.algorithm, bit_string(self.sign(info)))


def ec_draft() -> Draft:
    """A good request for a P-256 key."""
    return Draft(spki=spki(ec_key()), sign=ecdsa(ec_key()))


def rsa_draft() -> Draft:
    """A good request for an RSA-2048 key."""
    return Draft(spki=spki(rsa_key()), sign=pkcs1(rsa_key()), algorithm=RSA_SHA256)


def asking(*extensions: bytes) -> bytes:
    """A P-256 request, good but for the extensions that it asks for."""
    return replace(ec_draft(), attributes=attributes(requested(*extensions))).der()


def naming(*names: bytes) -> bytes:
    """A P-256 request, good but for the names that it asks for."""
    return asking(extension(SAN, sequence(*names)))


def pem(der: bytes, label: str = "CERTIFICATE REQUEST", newline: bytes = b"\n") -> bytes:
    text = base64.b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return newline.join([f"-----BEGIN {label}-----".encode(), *lines, f"-----END {label}-----".encode(), b""])


def signed(info: bytes, signature: bytes | None = None, *, unused: int = 0, after: bytes = b"") -> bytes:
    return sequence(info, ECDSA_SHA256, bit_string(signature or ecdsa(ec_key())(info), unused), after)


def with_attributes(*members: bytes) -> bytes:
    return replace(ec_draft(), attributes=attributes(*members)).der()


def with_subject(*relative_names: bytes) -> bytes:
    return replace(ec_draft(), subject=sequence(*relative_names)).der()


def named(text: bytes, type_oid: str = "2.5.4.3") -> bytes:
    return sequence(oid(type_oid), text)


def refused_rule(parse: Callable[[], object]) -> str:
    with pytest.raises(InvalidCSR) as refused:
        parse()
    assert refused.value.message, "a refusal says what is wrong"
    return refused.value.rule
