"""Certificate files as people and programs leave them, and what is refused of them."""

from __future__ import annotations

import ssl
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given, settings
from hypothesis import strategies as st

from citadel_py.core.errors import InvalidCertificate
from citadel_py.core.keys import KeyType, generate_key, private_key_pem, public_key_der
from citadel_py.core.pem import (
    MAX_PEM_BYTES,
    certificate_pem,
    certificate_pem_of_der,
    certificates_pem,
    load_certificate,
    load_certificates,
)
from tests.core.svid_factory import Pki, der, edit_extensions, name, splice

PKI = Pki()
ONE, TWO = PKI.root.certificate, PKI.intermediate.certificate
PEM, PEM_TWO = certificate_pem(ONE), certificate_pem(TWO)
LEAF = der(PKI.leaf(subject=name("a")).certificate)
KEY = private_key_pem(generate_key(KeyType.P256))


def refused(pem: bytes) -> InvalidCertificate:
    with pytest.raises(InvalidCertificate) as caught:
        load_certificates(pem)
    return caught.value


@pytest.mark.parametrize(
    "pem",
    [
        PEM + PEM_TWO,
        (PEM + PEM_TWO).replace(b"\n", b"\r\n"),
        PEM.rstrip() + b"\n\n \t\n" + PEM_TWO.rstrip(),
        b"subject=CN = root\n# a comment\n" + PEM + b"Certificate 2:\n" + PEM_TWO + b"\nend of chain\n",
        b"\xef\xbb\xbf" + PEM + PEM_TWO,
        PEM.replace(b"CERTIFICATE", b"X509 CERTIFICATE") + PEM_TWO,
    ],
    ids=["canonical", "CRLF", "white space", "text around", "byte order mark", "older label"],
)
def test_certificates_are_read_in_their_order_and_leave_as_canonical_pem(pem: bytes) -> None:
    certificates = load_certificates(pem)
    assert certificates == (ONE, TWO)
    assert certificates_pem(certificates) == PEM + PEM_TWO


@given(st.binary(min_size=1, max_size=200))
@example(bytes(48))  # one full line
def test_pem_of_der_is_what_others_make_of_it(data: bytes) -> None:
    assert certificate_pem_of_der(data) == ssl.DER_cert_to_PEM_cert(data).encode()


def test_a_pem_block_ends_in_exactly_one_newline() -> None:
    assert PEM.endswith(b"-----END CERTIFICATE-----\n")


@pytest.mark.parametrize(
    ("pem", "rule"),
    [
        (b"", "certificates_missing"),
        (b" \n\n", "certificates_missing"),
        (b"no certificate here", "certificates_missing"),
        (der(ONE), "certificates_missing"),
        (PEM + KEY, "private_key_in_certificates"),
        (KEY + PEM, "private_key_in_certificates"),
        (KEY, "private_key_in_certificates"),
        (PEM.replace(b"CERTIFICATE", b"CERTIFICATE REQUEST"), "not_a_certificate"),
        (PEM + PEM.replace(b"CERTIFICATE", b"X509 CRL"), "not_a_certificate"),
        (PEM.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"), "not_a_certificate"),
        (PEM + b"\0", "certificates_nul"),
        (PEM.decode().encode("utf-16"), "certificates_missing"),
        (b" " * MAX_PEM_BYTES + PEM, "certificates_too_large"),
        (PEM + PEM_TWO[:200], "certificate_damaged"),
        (PEM[:-5], "certificate_unreadable"),
        (PEM + PEM_TWO[1:], "certificate_damaged"),
        (PEM + PEM_TWO.replace(b"CERTIFICATE-----\n", b"CERTIFICATE----\n", 1), "certificate_damaged"),
        (PEM + PEM_TWO.replace(b"END CERTIFICATE", b"END CERTIFICAT"), "certificate_unreadable"),
        (PEM.replace(b"MII", b"M*I"), "certificate_unreadable"),
        (PEM.replace(b"MII", b"MIJ"), "certificate_unreadable"),
        (b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "certificate_unreadable"),
    ],
)
def test_what_is_no_list_of_certificates_is_refused(pem: bytes, rule: str) -> None:
    assert refused(pem).rule == rule


def test_der_where_pem_belongs_is_recognised() -> None:
    assert "openssl x509 -inform der" in refused(der(ONE)).hints[0]


def test_neither_the_key_nor_the_text_that_was_found_is_repeated() -> None:
    error = refused(PEM + KEY)
    assert KEY.splitlines()[1].decode() not in str((error.message, error.hints))
    assert refused(b"-----BEGIN A\x1b[31mB-----\n" + PEM).message.isprintable()


@pytest.mark.parametrize("serial", [b"\x02\x01\x00", b"\x02\x01\x80"], ids=["zero", "negative"])
@pytest.mark.parametrize("is_error", [True, False], ids=["warnings are errors", "warnings are ignored"])
def test_a_serial_number_that_is_not_positive_is_refused(serial: bytes, *, is_error: bool) -> None:
    bad = der(splice(ONE, PKI.root, lambda fields: fields.__setitem__(1, serial)))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if is_error else "ignore")
        with pytest.raises(InvalidCertificate, match="serial number"):
            load_certificate(bad)


def test_what_the_library_would_find_later_is_found_at_once() -> None:
    twice = splice(ONE, PKI.root, edit_extensions(lambda extensions: extensions.append(extensions[0])))
    with pytest.raises(InvalidCertificate, match="Duplicate"):
        load_certificate(der(twice))
    with pytest.raises(InvalidCertificate, match="Duplicate"):
        load_certificates(twice.public_bytes(Encoding.PEM))


def test_an_unknown_tls_feature_is_a_certificate_that_cannot_be_read() -> None:
    feature = bytes.fromhex("301106082b0601050507011804053003020107")  # number 7; RFC 7633 knows 5 and 17
    odd = der(splice(ONE, PKI.root, edit_extensions(lambda extensions: extensions.append(feature))))
    with pytest.raises(InvalidCertificate) as caught:
        load_certificate(odd)
    assert caught.value.rule == "certificate_unreadable"


def test_bytes_behind_a_der_certificate_are_refused() -> None:
    assert load_certificate(der(ONE)) == ONE
    with pytest.raises(InvalidCertificate):
        load_certificate(der(ONE) + b"\0")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(LEAF) - 1), st.integers(0, 255)), max_size=4))
def test_a_damaged_certificate_is_read_in_full_or_refused(damage: list[tuple[int, int]]) -> None:
    damaged = bytearray(LEAF)
    for position, value in damage:
        damaged[position] = value
    try:
        certificate = load_certificate(bytes(damaged))
    except InvalidCertificate:
        return
    for part in (certificate.subject, certificate.issuer):
        part.rfc4514_string()
    list(certificate.extensions)
    public_key_der(certificate.public_key())  # type: ignore[arg-type]  # of any kind
    assert certificate.serial_number > 0
    assert load_certificates(certificate_pem(certificate)) == (certificate,)


@given(st.binary(max_size=400).map(lambda noise: PEM[:40] + noise + PEM[40:]) | st.binary(max_size=400))
def test_noise_is_never_more_than_an_invalid_certificate(noise: bytes) -> None:
    try:
        certificates = load_certificates(noise)
    except InvalidCertificate:
        return
    assert all(isinstance(each, x509.Certificate) for each in certificates)
