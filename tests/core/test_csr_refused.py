"""What the CSR policy refuses in form and extensions, by rule. One row breaks one rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from citadel_py.core.csr import parse_csr, parse_csr_pem
from tests.core import hostile_csrs as make
from tests.core.hostile_csrs import (
    ECDSA_SHA256,
    NULL,
    TRUE,
    Draft,
    Row,
    asking,
    attribute,
    attributes,
    bit_string,
    ec_draft,
    ec_key,
    ecdsa,
    extension,
    integer,
    named,
    naming,
    oid,
    pem,
    refused_rule,
    requested,
    rsa_draft,
    rsa_spki,
    sequence,
    set_of,
    signed,
    tlv,
    uri,
    with_attributes,
    with_subject,
)


def signature_with_spare_bits() -> bytes:
    """The last bit of the signature is zero, and declared to be no part of it."""
    info = ec_draft().info()
    signature = next(made for made in iter(lambda: ecdsa(ec_key())(info), b"") if made[-1] % 2 == 0)
    return signed(info, signature, unused=1)


def rewritten(body: Callable[[bytes], bytes]) -> bytes:
    """The outermost SEQUENCE, with its header made from its contents by the caller."""
    der = ec_draft().der()
    contents = der[3:] if der[1] == 0x81 else der[4:]
    return body(contents)


PASSWORD = attribute(make.CHALLENGE_PASSWORD, tlv(0x0C, b"x"))


FORM: list[Row] = [
    ("version 1", "csr_version", lambda: replace(ec_draft(), version=integer(1)).der()),
    ("version 2", "csr_version", lambda: replace(ec_draft(), version=integer(2)).der()),
    ("version 256", "csr_malformed", lambda: replace(ec_draft(), version=integer(256)).der()),
    ("version -1", "csr_malformed", lambda: replace(ec_draft(), version=integer(-1)).der()),
    ("version in two bytes", "csr_malformed", lambda: replace(ec_draft(), version=b"\x02\x02\x00\x00").der()),
    ("no version", "csr_malformed", lambda: replace(ec_draft(), version=b"").der()),
    ("a byte after", "csr_malformed", lambda: ec_draft().der() + b"\0"),
    ("a line end after", "csr_malformed", lambda: ec_draft().der() + b"\n"),
    ("an element more", "csr_malformed", lambda: signed(ec_draft().info(), after=NULL)),
    ("cut off", "csr_malformed", lambda: ec_draft().der()[:-1]),
    ("a length longer than needed", "csr_malformed", lambda: rewritten(lambda c: b"\x30\x83" + len(c).to_bytes(3) + c)),
    ("indefinite length", "csr_malformed", lambda: rewritten(lambda c: b"\x30\x80" + c + b"\0\0")),
    ("a length beyond the end", "csr_malformed", lambda: rewritten(lambda c: b"\x30\x84\xff\xff\xff\xff" + c)),
    ("no attributes field", "csr_malformed", lambda: replace(ec_draft(), attributes=b"").der()),
    ("attributes as a plain SET", "csr_malformed", lambda: replace(ec_draft(), attributes=set_of()).der()),
    ("attributes out of order", "csr_malformed",
     lambda: replace(ec_draft(), attributes=tlv(0xA0, *sorted([PASSWORD, requested()], reverse=True))).der()),
    ("unused bits in the signature", "csr_not_canonical", signature_with_spare_bits),
    ("unused bits out of range", "csr_malformed", lambda: signed(ec_draft().info(), unused=8)),
    ("a signature without octets", "csr_malformed", lambda: sequence(ec_draft().info(), ECDSA_SHA256, tlv(0x03))),
    ("parameters where ECDSA has none", "csr_malformed",
     lambda: replace(ec_draft(), algorithm=sequence(oid("1.2.840.10045.4.3.2"), NULL)).der()),
    ("a NULL with contents", "csr_malformed",
     lambda: replace(rsa_draft(), spki=rsa_spki(5, algorithm=sequence(oid(make.RSA_ENCRYPTION), b"\5\1\0"))).der()),
    ("a subject string in pieces", "csr_not_canonical",
     lambda: with_subject(set_of(named(tlv(0x2C, tlv(0x0C, b"a")))))),
    ("a number in the subject", "csr_not_canonical", lambda: with_subject(set_of(named(b"\x02\x02\x00\x01")))),
    ("an empty name in the subject", "csr_not_canonical", lambda: with_subject(set_of())),
    ("a subject out of order", "csr_malformed",
     lambda: with_subject(set_of(named(tlv(0x0C, b"b")), named(tlv(0x0C, b"a"))))),
    ("two extension requests", "csr_duplicate_attribute",
     lambda: with_attributes(requested(), requested(extension(make.SAN, sequence(uri(b"spiffe://a/b")))))),
    ("the same extension request twice", "csr_duplicate_attribute", lambda: with_attributes(requested(), requested())),
    ("extension requests of both names", "csr_duplicate_attribute",
     lambda: with_attributes(requested(), requested(attribute_type=make.MICROSOFT_EXTENSION_REQUEST))),
    ("two challenge passwords", "csr_duplicate_attribute",
     lambda: with_attributes(PASSWORD, attribute(make.CHALLENGE_PASSWORD, tlv(0x0C, b"y")))),
    ("an extension request of two values", "csr_attribute",
     lambda: with_attributes(attribute(make.EXTENSION_REQUEST, sequence(), sequence(sequence())))),
    ("an extension request of no value", "csr_attribute", lambda: with_attributes(attribute(make.EXTENSION_REQUEST))),
    ("a password of two values", "csr_attribute",
     lambda: with_attributes(attribute(make.CHALLENGE_PASSWORD, tlv(0x0C, b"x"), tlv(0x0C, b"y")))),
    ("a password that is a number", "csr_attribute",
     lambda: with_attributes(attribute(make.CHALLENGE_PASSWORD, integer(3)))),
    ("a password in pieces", "csr_attribute",
     lambda: with_attributes(attribute(make.CHALLENGE_PASSWORD, tlv(0x2C, tlv(0x0C, b"x"))))),
    ("an unknown attribute that is no string", "csr_attribute",
     lambda: with_attributes(attribute("1.2.3", sequence(b"\1\1\1")))),
    ("an extension request that is a string", "csr_malformed",
     lambda: with_attributes(attribute(make.EXTENSION_REQUEST, tlv(0x0C, b"hi")))),
]  # fmt: skip


BASIC, USAGE, EXTENDED, SAN = make.BASIC_CONSTRAINTS, make.KEY_USAGE, make.EXTENDED_KEY_USAGE, make.SAN
PRIVATE = "1.3.6.1.4.1.55555.1"


def usage(bits: int, *, draft: Callable[[], Draft] = ec_draft) -> bytes:
    """A key usage: bit 0 (digitalSignature) is the highest of the nine."""
    trailing = (bits & -bits).bit_length() - 1
    value = (bits << 7).to_bytes(2)
    value = value if bits & 1 else value[:1]
    asked = extension(USAGE, bit_string(value, (7 if bits & 1 else trailing - 1)), critical=TRUE)
    return replace(draft(), attributes=attributes(requested(asked))).der()


EXTENSIONS: list[Row] = [
    ("an unknown critical extension", "csr_critical_extension", lambda: asking(extension(PRIVATE, b"", critical=TRUE))),
    ("critical name constraints", "csr_critical_extension",
     lambda: asking(extension("2.5.29.30", sequence(tlv(0xA0, sequence(uri(b"a")))), critical=TRUE))),
    ("an extension twice", "csr_duplicate_extension",
     lambda: asking(extension(SAN, sequence(uri(b"a"))), extension(SAN, sequence(uri(b"b"))))),
    ("an unknown extension twice", "csr_duplicate_extension",
     lambda: asking(extension(PRIVATE, b"a"), extension(PRIVATE, b"a"))),
    ("CA", "csr_requests_ca", lambda: asking(extension(BASIC, sequence(TRUE)))),
    ("CA with a path length", "csr_requests_ca", lambda: asking(extension(BASIC, sequence(TRUE, integer(0))))),
    ("CA in the other kind of request", "csr_requests_ca",
     lambda: with_attributes(
         requested(extension(BASIC, sequence(TRUE)), attribute_type=make.MICROSOFT_EXTENSION_REQUEST))),
    ("a path length without CA", "csr_malformed", lambda: asking(extension(BASIC, sequence(integer(0))))),
    ("a default written out", "csr_malformed", lambda: asking(extension(BASIC, sequence(b"\1\1\0")))),
    ("TRUE as 1", "csr_malformed", lambda: asking(extension(BASIC, sequence(b"\1\1\1")))),
    ("critical as 1", "csr_malformed", lambda: asking(extension(SAN, sequence(), critical=b"\1\1\1"))),
    ("critical FALSE written out", "csr_malformed", lambda: asking(extension(SAN, sequence(), critical=b"\1\1\0"))),
    ("usage contentCommitment", "csr_key_usage", lambda: usage(0b010000000)),
    ("usage keyEncipherment of an EC key", "csr_key_usage", lambda: usage(0b101000000)),
    ("usage dataEncipherment", "csr_key_usage", lambda: usage(0b000100000)),
    ("usage keyAgreement", "csr_key_usage", lambda: usage(0b100010000)),
    ("usage keyCertSign", "csr_key_usage", lambda: usage(0b000001000)),
    ("usage keyCertSign of an RSA key", "csr_key_usage", lambda: usage(0b000001000, draft=rsa_draft)),
    ("usage cRLSign", "csr_key_usage", lambda: usage(0b100000100)),
    ("usage encipherOnly", "csr_key_usage", lambda: usage(0b000010010)),
    ("usage decipherOnly", "csr_key_usage", lambda: usage(0b000010001)),
    ("a key usage with zeros after its last bit", "csr_not_canonical",
     lambda: asking(extension(USAGE, b"\x03\x02\x00\x80"))),
    ("a key usage of three octets", "csr_not_canonical",
     lambda: asking(extension(USAGE, b"\x03\x04\x07\x80\x00\x80"))),
    ("a key usage with bits beyond its length", "csr_malformed",
     lambda: asking(extension(USAGE, b"\x03\x02\x07\xff"))),
    ("extended usage codeSigning", "csr_extended_key_usage",
     lambda: asking(extension(EXTENDED, sequence(oid("1.3.6.1.5.5.7.3.1"), oid("1.3.6.1.5.5.7.3.3"))))),
    ("any extended usage", "csr_extended_key_usage",
     lambda: asking(extension(EXTENDED, sequence(oid("2.5.29.37.0"))))),
    ("no extended usage in the list", "csr_malformed", lambda: asking(extension(EXTENDED, sequence()))),
    ("a URI in UTF-8", "csr_san_not_ascii", lambda: naming(uri("spiffe://é/a".encode()))),
    ("a DNS name in UTF-8", "csr_san_not_ascii", lambda: naming(tlv(0x82, "é.example".encode()))),
    ("an e-mail address in UTF-8", "csr_san_not_ascii", lambda: naming(tlv(0x81, "é@a".encode()))),
    ("a URI in Latin-1", "csr_malformed", lambda: naming(uri(b"spiffe://\xe9"))),
    ("a name in pieces", "csr_malformed", lambda: naming(tlv(0xA6, tlv(0x16, b"a")))),
    ("names that are no list", "csr_malformed", lambda: asking(extension(SAN, b"garbage"))),
    ("bytes after the names", "csr_malformed", lambda: asking(extension(SAN, sequence() + b"\0"))),
    ("names in a longer length", "csr_malformed", lambda: asking(extension(SAN, b"\x30\x81\x03\x86\x01a"))),
    ("an address of five bytes", "csr_malformed", lambda: naming(tlv(0x87, bytes(5)))),
    ("an X.400 address", "csr_malformed", lambda: naming(tlv(0xA3))),
    ("an EDI party", "csr_malformed", lambda: naming(tlv(0xA5))),
    ("a name of no known kind", "csr_malformed", lambda: naming(tlv(0x89))),
    ("a TLS feature that nobody knows", "csr_malformed",
     lambda: asking(extension("1.3.6.1.5.5.7.1.24", sequence(integer(99))))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "der"), [pytest.param(row[1], row[2], id=row[0]) for row in FORM + EXTENSIONS])
def test_a_request_is_refused_by_the_rule_that_it_breaks(rule: str, der: Callable[[], bytes]) -> None:
    data = der()
    assert refused_rule(lambda: parse_csr(data)) == rule
    assert refused_rule(lambda: parse_csr_pem(pem(data))) == rule


def test_no_request_with_one_bit_changed_is_accepted() -> None:
    der = asking(extension(SAN, sequence(uri(b"spiffe://example.org/a"))))
    for position in range(len(der) * 8):
        changed = bytearray(der)
        changed[position // 8] ^= 1 << position % 8
        refused_rule(lambda data=bytes(changed): parse_csr(data))  # type: ignore[misc] # a default argument
