"""From bytes to one whole, canonical PKCS #10 request (RFC 2986), and nothing else beside it.

Decides about form only: no key, name, usage or signature is judged here. The library parses; the
classes below declare to its DER decoder what its own CSR object does not tell. That decoder
(`cryptography.hazmat.asn1`) is public but not yet under the library's promise of compatibility, so
nothing outside this file and template.py uses it.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from dataclasses import dataclass
from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from citadel_py.core import pem
from citadel_py.core.errors import InvalidCSR

MAX_CSR_BYTES = 16 * 1024

# Everything that the library raises over a request that it cannot read, at once or when a part is asked
# for; KeyError is its answer to a TLS feature (RFC 7633) that it does not know.
UNREADABLE = (*pem.UNREADABLE, KeyError)

_LABELS = (b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST")  # RFC 7468 7
_BEGIN = re.compile(rb"-----BEGIN ([^\r\n]{0,64}?)-----")

_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")  # RFC 2985 5.4.2
_MICROSOFT_EXTENSION_REQUEST = x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.14")  # the library reads it alike
_EXTENSION_REQUESTS = (_EXTENSION_REQUEST, _MICROSOFT_EXTENSION_REQUEST)
_STRING_TAGS = frozenset({b"\x0c", b"\x13", b"\x14", b"\x16", b"\x1c", b"\x1e"})  # of ASN.1 string types, primitive


@asn1.sequence
class _NameAttribute:  # RFC 5280 4.1.2.4
    type: x509.ObjectIdentifier
    value: asn1.TLV


@asn1.sequence
class _Attribute:  # RFC 2986 4.1
    type: x509.ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _RequestInfo:  # RFC 2986 4.1
    version: int
    subject: list[asn1.SetOf[_NameAttribute]]
    public_key: asn1.TLV
    attributes: Annotated[asn1.SetOf[_Attribute], asn1.Implicit(0)]


@asn1.sequence
class _Request:  # RFC 2986 4.2
    info: _RequestInfo
    algorithm: list[asn1.TLV]
    signature: asn1.BitString


@asn1.sequence
class _SubjectPublicKeyInfo:  # RFC 5280 4.1
    algorithm: list[asn1.TLV]
    key: asn1.BitString


@asn1.sequence
class _RSAPublicKey:  # RFC 8017 A.1.1
    modulus: int
    exponent: int


@asn1.sequence
class _PssParameters:  # RFC 4055 3.1, without the trailer field: only its default exists
    digest: Annotated[list[asn1.TLV], asn1.Explicit(0)]
    mask: Annotated[list[asn1.TLV], asn1.Explicit(1)]
    salt_length: Annotated[int, asn1.Explicit(2), asn1.Default(20)]


@asn1.sequence
class _Extension:  # RFC 5280 4.1
    type: x509.ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]  # noqa: FBT003 - ASN.1's DEFAULT FALSE
    value: bytes


@asn1.sequence
class _ExtensionRequest:  # RFC 2985 5.4.2
    type: x509.ObjectIdentifier
    values: asn1.SetOf[list[_Extension]]


@dataclass(frozen=True, slots=True)
class CanonicalCSR:
    """A request whose bytes are the only way to write down what it says. Nothing in it is believed yet."""

    request: x509.CertificateSigningRequest
    _outline: _Request

    def spki(self) -> bytes:
        """The subject public key info of the request, DER."""
        return asn1.encode_der(self._outline.info.public_key)

    def key_algorithm(self) -> x509.ObjectIdentifier:
        """What the subject public key info calls its key. Raises InvalidCSR: `key_malformed`."""
        try:
            algorithm: x509.ObjectIdentifier = self._spki().algorithm[0].parse(x509.ObjectIdentifier)
        except (IndexError, *UNREADABLE) as error:
            raise InvalidCSR("the public key does not say of which kind it is", rule="key_malformed") from error
        return algorithm

    def rsa_numbers(self) -> tuple[int, int]:
        """Modulus and exponent of an RSA key, also of one that the library refuses.

        Raises InvalidCSR: `key_malformed`.
        """
        try:
            numbers = asn1.decode_der(_RSAPublicKey, self._spki().key.as_bytes())
        except UNREADABLE as error:
            raise InvalidCSR("an RSA key that cannot be read", rule="key_malformed") from error
        return numbers.modulus, numbers.exponent

    def pss_salt_length(self) -> int:
        """Octets of salt of an RSASSA-PSS signature. Raises InvalidCSR: `csr_signature_algorithm`."""
        try:
            salt_length: int = self._outline.algorithm[1].parse(_PssParameters).salt_length
        except (IndexError, *UNREADABLE) as error:
            raise InvalidCSR(
                "parameters of a PSS signature that cannot be read", rule="csr_signature_algorithm"
            ) from error
        return salt_length

    def extensions(self) -> x509.Extensions:
        """The extensions asked for.

        Raises InvalidCSR: `csr_duplicate_extension`, `csr_malformed`, `csr_not_canonical`.
        """
        try:
            extensions = self.request.extensions
            if any(extension.oid == ExtensionOID.KEY_USAGE for extension in extensions):
                self._check_key_usage(extensions)
        except x509.DuplicateExtension as error:
            raise InvalidCSR(
                f"the extension {error.oid.dotted_string} is there twice", rule="csr_duplicate_extension"
            ) from error
        except UNREADABLE as error:
            raise _unreadable(error) from error
        return extensions

    def _spki(self) -> _SubjectPublicKeyInfo:
        spki: _SubjectPublicKeyInfo = self._outline.info.public_key.parse(_SubjectPublicKeyInfo)
        return spki

    def _check_key_usage(self, extensions: x509.Extensions) -> None:
        """The library, strict otherwise, reads bits of no use after the last one set (X.690 11.2.2)."""
        written = next(
            asn1.decode_der(_ExtensionRequest, asn1.encode_der(member)).values.as_list()[0]
            for member in self._outline.info.attributes.as_list()
            if member.type in _EXTENSION_REQUESTS
        )
        for extension, as_written in zip(extensions, written, strict=True):
            if extension.oid == ExtensionOID.KEY_USAGE and extension.value.public_bytes() != as_written.value:
                raise _not_canonical("the key usage has bits after its last one")


def read_pem(text: bytes) -> CanonicalCSR:
    """Read exactly one PEM block of a certificate request, LF or CRLF. Text before it is ignored.

    Raises InvalidCSR: `csr_too_large`, `csr_empty`, `csr_nul`, `csr_not_pem`, `csr_private_key`,
    `csr_several_blocks`, `csr_wrong_label`, `csr_trailing_data`, and those of `read_der`.
    """
    _check_size(text)
    label = _only_label(text)
    begin, end = b"-----BEGIN %b-----" % label, b"-----END %b-----" % label
    body, found, rest = text[text.index(begin) + len(begin) :].partition(end)
    if not found:
        raise InvalidCSR("the PEM block has no end, or another end than its beginning", rule="csr_malformed")
    if rest.strip():
        raise InvalidCSR("something follows the PEM block", rule="csr_trailing_data")
    try:
        request = x509.load_pem_x509_csr(begin + body + end)
    except UNREADABLE as error:
        raise _unreadable(error) from error
    der = request.public_bytes(Encoding.DER)  # the library writes it anew
    if b2a_base64(der, newline=False) != b"".join(body.split()):
        raise _not_canonical("the PEM block holds more than the base64 of the request, or another encoding of it")
    return _canonical(request, der)


def read_der(der: bytes) -> CanonicalCSR:
    """Read one DER request.

    Raises InvalidCSR: `csr_too_large`, `csr_version`, `csr_malformed`, `csr_not_canonical`,
    `csr_duplicate_attribute`, `csr_attribute`.
    """
    _check_size(der)
    try:
        request = x509.load_der_x509_csr(der)
    except UNREADABLE as error:
        raise _unreadable(error) from error
    if request.public_bytes(Encoding.DER) != der:
        raise _not_canonical("it has another encoding")
    return _canonical(request, der)


def _check_size(data: bytes) -> None:
    if len(data) > MAX_CSR_BYTES:
        raise InvalidCSR(f"a request of {len(data)} bytes, at most {MAX_CSR_BYTES} are allowed", rule="csr_too_large")


def _only_label(text: bytes) -> bytes:
    """The label of the one block in the text."""
    if not text.strip():
        raise InvalidCSR("the request is empty", rule="csr_empty")
    if b"\0" in text:
        raise InvalidCSR("a NUL byte in the PEM text", rule="csr_nul")
    if b"PRIVATE KEY-----" in text:
        raise InvalidCSR(
            "a private key where a certificate request belongs",
            rule="csr_private_key",
            hint="make a new key: this one has left its machine; send the request alone",
        )
    labels: list[bytes] = _BEGIN.findall(text)
    if not labels:
        raise InvalidCSR("no PEM block", rule="csr_not_pem", hint="openssl req -in FILE -inform der makes PEM of DER")
    if len(labels) > 1:
        raise InvalidCSR(f"{len(labels)} PEM blocks where one belongs", rule="csr_several_blocks")
    if labels[0] not in _LABELS:
        raise InvalidCSR(
            f"a PEM block {labels[0].decode('latin-1')!a} is no certificate request", rule="csr_wrong_label"
        )
    return labels[0]


def _canonical(request: x509.CertificateSigningRequest, der: bytes) -> CanonicalCSR:
    try:
        outline = asn1.decode_der(_Request, der)
    except UNREADABLE as error:
        raise _unreadable(error) from error
    if outline.signature.padding_bits():
        raise _not_canonical("the signature is not a whole number of octets")
    _check_subject(outline.info.subject)
    _check_attributes(outline.info.attributes.as_list())
    return CanonicalCSR(request, outline)


def _check_subject(subject: list[asn1.SetOf[_NameAttribute]]) -> None:
    """It is not believed, and its text not even read; but the library lets any value pass."""
    for relative_name in subject:
        members = relative_name.as_list()
        if not members or any(member.value.tag_bytes not in _STRING_TAGS for member in members):
            raise _not_canonical("a part of the subject is empty, or no string in one piece")


def _check_attributes(attributes: list[_Attribute]) -> None:
    """One of a kind, one value each: of two the library would read one and be silent about the other.

    What does not ask for extensions is ignored, and must be plain text: nobody would see what else is in it.
    """
    kinds = {_EXTENSION_REQUEST if member.type in _EXTENSION_REQUESTS else member.type for member in attributes}
    if len(kinds) != len(attributes):
        raise InvalidCSR("an attribute is there twice", rule="csr_duplicate_attribute")
    for member in attributes:
        values = member.values.as_list()
        if len(values) != 1:
            raise InvalidCSR(
                f"the attribute {member.type.dotted_string} has {len(values)} values where one belongs",
                rule="csr_attribute",
            )
        if member.type not in _EXTENSION_REQUESTS and values[0].tag_bytes not in _STRING_TAGS:
            raise InvalidCSR(
                f"the attribute {member.type.dotted_string} is no string in one piece", rule="csr_attribute"
            )


def _unreadable(error: Exception) -> InvalidCSR:
    if isinstance(error, x509.InvalidVersion):
        return InvalidCSR("the version of the request is not v1 (0)", rule="csr_version")
    return InvalidCSR(f"the request cannot be read: {str(error)[:200]!a}", rule="csr_malformed")


def _not_canonical(what: str) -> InvalidCSR:
    return InvalidCSR(f"the request is not canonical DER: {what}", rule="csr_not_canonical")
