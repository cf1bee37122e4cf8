"""One PEM block and nothing beside it: what is read, and what is refused before anything is parsed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.csr import create_csr, parse_csr, parse_csr_pem
from citadel_py.core.errors import InvalidCSR
from tests.core import hostile_csrs as make
from tests.core.hostile_csrs import Row, ec_draft, ec_key, integer, pem, refused_rule, sequence

GOOD = create_csr(ec_key())
BEGIN, END = b"-----BEGIN CERTIFICATE REQUEST-----", b"-----END CERTIFICATE REQUEST-----"


def private_key_pem() -> bytes:
    return ec_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def public_key_pem() -> bytes:
    return (
        ec_key().public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def padded_pem() -> bytes:
    """A good request whose base64 ends in one "=", so that its last letter has spare bits."""
    der = next(der for der in iter(ec_draft().der, b"") if len(der) % 3 == 2)
    return pem(der)


def with_spare_bits_set() -> bytes:
    head, equals, tail = padded_pem().rpartition(b"=\n")
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return head[:-1] + bytes([alphabet[alphabet.index(head[-1]) + 1]]) + equals + tail


PEM: list[Row] = [
    ("more than 16 KiB", "csr_too_large", lambda: GOOD + b"\n" * (16 * 1024)),
    ("more than 16 KiB of text before", "csr_too_large", lambda: b"\n" * (16 * 1024) + GOOD),
    ("nothing", "csr_empty", lambda: b""),
    ("white space", "csr_empty", lambda: b" \r\n\t"),
    ("no PEM", "csr_not_pem", lambda: b"hello"),
    ("bare base64", "csr_not_pem", lambda: GOOD.replace(BEGIN, b"").replace(END, b"")),
    ("four dashes", "csr_not_pem", lambda: GOOD.replace(b"-----BEGIN", b"----BEGIN")),
    ("UTF-16", "csr_nul", lambda: GOOD.decode().encode("utf-16")),
    ("a certificate's label", "csr_wrong_label", lambda: pem(ec_draft().der(), "CERTIFICATE")),
    ("PKCS #7", "csr_wrong_label", lambda: pem(b"0\x00", "PKCS7")),
    ("a public key", "csr_wrong_label", public_key_pem),
    ("lower case label", "csr_wrong_label", lambda: pem(ec_draft().der(), "certificate request")),
    ("another label", "csr_wrong_label", lambda: pem(ec_draft().der(), "X509 CERTIFICATE REQUEST")),
    ("two spaces in the label", "csr_wrong_label", lambda: pem(ec_draft().der(), "CERTIFICATE  REQUEST")),
    ("a private key", "csr_private_key", private_key_pem),
    ("a private key before", "csr_private_key", lambda: private_key_pem() + GOOD),
    ("a private key after", "csr_private_key", lambda: GOOD + private_key_pem()),
    ("an encrypted key beside", "csr_private_key", lambda: GOOD + pem(b"0", "ENCRYPTED PRIVATE KEY")),
    ("the same block twice", "csr_several_blocks", lambda: GOOD + GOOD),
    ("a certificate before", "csr_several_blocks", lambda: pem(b"0\x00", "CERTIFICATE") + GOOD),
    ("a certificate after", "csr_several_blocks", lambda: GOOD + pem(b"0\x00", "CERTIFICATE")),
    ("a block that does not end before", "csr_several_blocks", lambda: b"-----BEGIN X-----\n" + GOOD),
    ("text after", "csr_trailing_data", lambda: GOOD + b"x"),
    ("an end after the end", "csr_trailing_data", lambda: GOOD + END),
    ("a byte order mark after", "csr_trailing_data", lambda: GOOD + b"\xef\xbb\xbf"),
    ("a sixth dash", "csr_trailing_data", lambda: GOOD.rstrip() + b"-"),
    ("NUL after", "csr_nul", lambda: GOOD + b"\0"),
    ("NUL before", "csr_nul", lambda: b"\0" + GOOD),
    ("NUL within", "csr_nul", lambda: GOOD.replace(b"\n", b"\n\0", 2)),
    ("no end", "csr_malformed", lambda: GOOD.replace(END, b"")),
    ("cut off", "csr_malformed", lambda: GOOD[: len(GOOD) // 2]),
    ("mixed labels", "csr_malformed", lambda: GOOD.replace(END, b"-----END NEW CERTIFICATE REQUEST-----")),
    ("nothing in the block", "csr_malformed", lambda: BEGIN + b"\n" + END),
    ("not base64", "csr_malformed", lambda: GOOD.replace(b"\nMI", b"\nM!")),
    ("base64 of URLs", "csr_malformed", lambda: pem(b"\xfb" * 9).replace(b"+", b"-")),
    ("no padding", "csr_malformed", lambda: padded_pem().replace(b"=", b"")),
    ("too much padding", "csr_malformed", lambda: padded_pem().replace(b"=", b"==")),
    ("spare bits of the base64", "csr_malformed", with_spare_bits_set),
    ("headers", "csr_not_canonical", lambda: GOOD.replace(BEGIN, BEGIN + b"\nProc-Type: 4,CLEAR\n")),
    ("bytes after the DER in the base64", "csr_malformed", lambda: pem(ec_draft().der() + b"\0")),
    ("a certificate under the right label", "csr_malformed", lambda: pem(sequence(sequence(integer(2))))),
    ("a public key under the right label", "csr_malformed", lambda: pem(make.spki(ec_key()))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "text"), [pytest.param(row[1], row[2], id=row[0]) for row in PEM])
def test_text_is_refused_by_the_rule_that_it_breaks(rule: str, text: Callable[[], bytes]) -> None:
    data = text()
    assert refused_rule(lambda: parse_csr_pem(data)) == rule
    assert refused_rule(lambda: parse_csr(data)) == rule


def test_a_private_key_is_never_repeated_in_the_error() -> None:
    key = private_key_pem()
    with pytest.raises(InvalidCSR) as refused:
        parse_csr_pem(key)
    shown = f"{refused.value.message} {refused.value.hints} {refused.value.__cause__!r}".encode()
    assert not any(line in shown for line in key.splitlines()[1:-1])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(GOOD, id="LF"),
        pytest.param(GOOD.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(pem(ec_draft().der(), "NEW CERTIFICATE REQUEST"), id="NEW"),
        pytest.param(pem(ec_draft().der(), "NEW CERTIFICATE REQUEST", b"\r\n"), id="NEW, CRLF"),
        pytest.param(GOOD.rstrip(), id="no line end at the end"),
        pytest.param(b"\r\n \t" + GOOD + b" \t\r\n\n", id="white space around"),
        pytest.param(b"Certificate Request:\n    Data: 0\n" + GOOD, id="text before"),
        pytest.param("\N{BYTE ORDER MARK}Grüße\n".encode() + GOOD, id="text before that is not ASCII"),
        pytest.param(b"-----\n-----END nothing-----\n" + GOOD, id="dashes before"),
        pytest.param(b" " * (16 * 1024 - len(GOOD)) + GOOD, id="16 KiB"),
    ],
)
def test_one_block_is_read_whatever_is_before_it(text: bytes) -> None:
    assert parse_csr(text).public_key.public_numbers() == parse_csr_pem(text).public_key.public_numbers()  # type: ignore[union-attr] # an EC key


def test_der_is_read_by_the_offline_form_only() -> None:
    der = ec_draft().der()
    assert parse_csr(der).public_key == ec_key().public_key()
    assert refused_rule(lambda: parse_csr_pem(der)) in ("csr_not_pem", "csr_nul")


LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b" \n", b"\t\r\n"])
BEFORE = st.binary(max_size=200).filter(lambda text: b"\0" not in text and b"-----" not in text)


@given(before=BEFORE, line_end=LINE_ENDS, after=st.text(" \t\r\n", max_size=20), label=st.sampled_from(["", "NEW "]))
def test_line_ends_labels_and_text_before_change_nothing(
    before: bytes, line_end: bytes, after: str, label: str
) -> None:
    text = before + b"\n" + pem(ec_draft().der(), f"{label}CERTIFICATE REQUEST", line_end) + after.encode()
    assert parse_csr_pem(text).public_key == ec_key().public_key()


@given(st.binary(min_size=1, max_size=50).filter(bytes.strip))
def test_nothing_may_follow_the_block(after: bytes) -> None:
    assert refused_rule(lambda: parse_csr_pem(GOOD + after)) in (
        "csr_trailing_data",
        "csr_nul",
        "csr_several_blocks",
        "csr_private_key",
    )
