"""Certificates in and out of PEM and DER: the library parses, and what leaves is re-emitted by it.

Text that came in is never passed on: a stray newline or comment in a root breaks handshakes
elsewhere. A certificate that this file returns can be read in full: the library parses most fields
only when they are asked for, so everything lazy is asked for here, once.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py.core.errors import InvalidCertificate

MAX_PEM_BYTES = 1 << 20  # bounds the work that a mounted file or a peer can ask for

# Everything the library raises over a certificate that it cannot read, at once or later. Its warnings
# (an attribute over its length, a serial that a later release refuses) count where warnings are errors.
UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,  # an unknown TLS feature (RFC 7633)
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UserWarning,
)

_BEGIN = re.compile(rb"-----BEGIN ([^\r\n]{0,64}?)-----")
_CERTIFICATE_LABELS = (b"CERTIFICATE", b"X509 CERTIFICATE")


def load_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Read one or more PEM certificates, in their order. Text outside the blocks is ignored (RFC 7468 2).

    Raises InvalidCertificate: `certificates_too_large`, `certificates_nul`, `certificates_missing`,
    `private_key_in_certificates`, `not_a_certificate`, `certificate_damaged`, `certificate_unreadable`,
    `serial_number`.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise InvalidCertificate(
            f"{len(pem)} bytes of PEM, at most {MAX_PEM_BYTES} allowed", rule="certificates_too_large"
        )
    _check_labels(pem)
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
    except UNREADABLE as error:
        raise _unreadable(error) from error
    _check_none_was_skipped(pem, len(certificates))
    for certificate in certificates:
        check_readable(certificate)
    return certificates


def load_certificate(der: bytes) -> x509.Certificate:
    """Read one DER certificate. Raises InvalidCertificate: `certificate_unreadable`, `serial_number`."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise _unreadable(error) from error
    check_readable(certificate)
    return certificate


def check_readable(certificate: x509.Certificate) -> None:
    """Ask for everything that the library parses late.

    Raises InvalidCertificate: `certificate_unreadable`, `serial_number`.
    """
    try:
        certificate.public_key()
        for part in ("extensions", "subject", "issuer", "not_valid_before_utc", "not_valid_after_utc", "version"):
            getattr(certificate, part)
    except UNREADABLE as error:
        raise _unreadable(error) from error
    if not _has_positive_serial(certificate):
        raise InvalidCertificate("a certificate's serial number is not positive", rule="serial_number")
    # The BIT STRING around a signature is not signed; the library lets it claim unused bits, so that one
    # certificate would have several forms and fingerprints (X.690 8.6.2.2: the octet before the bits counts them).
    if not certificate.public_bytes(Encoding.DER).endswith(b"\0" + certificate.signature):
        raise InvalidCertificate(
            "a certificate's signature is no whole number of octets", rule="certificate_unreadable"
        )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """One canonical PEM block, ending in exactly one newline."""
    return certificate.public_bytes(Encoding.PEM)


def certificate_pem_of_der(der: bytes) -> bytes:
    """The same for a certificate that is at hand in DER, in half the time: lines of 64 characters (RFC 7468 2)."""
    text = b2a_base64(der, newline=False)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""))


def certificates_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Canonical PEM blocks, one after the other."""
    return b"".join(map(certificate_pem, certificates))


def _check_labels(pem: bytes) -> None:
    if b"PRIVATE KEY-" in pem:
        raise InvalidCertificate(
            "a private key stands where only certificates belong",
            rule="private_key_in_certificates",
            hint="take the key out of the file, and replace it if others could read that file",
        )
    labels = _BEGIN.findall(pem)
    if not labels:
        hint = "this looks like DER: openssl x509 -inform der -in FILE" if pem.startswith(b"0") else ()
        raise InvalidCertificate("no PEM certificate", rule="certificates_missing", hint=hint)
    for label in labels:
        if label not in _CERTIFICATE_LABELS:
            raise InvalidCertificate(
                f"a PEM block {label.decode('latin-1')!a} stands where only certificates belong",
                rule="not_a_certificate",
            )
    if b"\0" in pem:
        raise InvalidCertificate("a NUL byte in the PEM text", rule="certificates_nul")


def _check_none_was_skipped(pem: bytes, count: int) -> None:
    # The library drops a block that lacks its end or a dash of its label; with it a root would be lost in silence.
    if not pem.count(b"BEGIN CERTIFICATE-") + pem.count(b"BEGIN X509 CERTIFICATE-") == pem.count(b"-----END ") == count:
        raise InvalidCertificate(
            f"only {count} of the PEM blocks are whole: one is cut off or its label is damaged",
            rule="certificate_damaged",
        )


def _has_positive_serial(certificate: x509.Certificate) -> bool:
    """RFC 5280 4.1.2.2. The library warns of others when they are read, and raises where warnings are errors."""
    try:
        return certificate.serial_number > 0
    except UserWarning:
        return False


def _unreadable(error: Exception) -> InvalidCertificate:
    return InvalidCertificate(f"a certificate cannot be read: {str(error)[:200]!a}", rule="certificate_unreadable")
