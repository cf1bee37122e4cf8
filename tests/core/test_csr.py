"""Requests that are accepted, what is taken from them, and what is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.csr import CsrPolicy, RequestedNames, SigningRequest, create_csr, parse_csr, parse_csr_pem
from citadel_py.core.errors import InvalidCSR
from citadel_py.core.keys import KeyType, PrivateKey, generate_key, public_key_der, signing_hash
from citadel_py.core.policy import Grant
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from tests.core import hostile_csrs as make
from tests.core.hostile_csrs import (
    TRUE,
    asking,
    attribute,
    attributes,
    dns,
    ec_draft,
    ec_key,
    extension,
    integer,
    named,
    naming,
    octet_string,
    oid,
    pem,
    requested,
    rsa_draft,
    rsa_key,
    sequence,
    set_of,
    tlv,
    uri,
    with_attributes,
    with_subject,
)

if TYPE_CHECKING:
    from tests.core.conftest import Pki

CART = "spiffe://example.org/ns/shop/sa/cart"


@pytest.mark.parametrize("file", sorted(make.DATA.glob("*.pem")), ids=lambda file: file.stem)
def test_requests_as_go_and_openssl_make_them_are_accepted(file: Path) -> None:
    names = parse_csr_pem(file.read_bytes()).names
    assert names == RequestedNames(uris=(CART,))


HARMLESS: list[tuple[str, Callable[[], bytes]]] = [
    ("nothing asked for", lambda: ec_draft().der()),
    ("an empty extension request", asking),
    ("an empty list of names", naming),
    ("a challenge password", lambda: with_attributes(attribute(make.CHALLENGE_PASSWORD, tlv(0x13, b"secret")))),
    ("an unknown attribute", lambda: with_attributes(attribute("1.2.840.113549.1.9.2", tlv(0x0C, b"Shop")))),
    ("an unknown extension", lambda: asking(extension("1.3.6.1.4.1.55555.1", b"anything"))),
    ("a subject key id", lambda: asking(extension("2.5.29.14", octet_string(b"id")))),
    ("not a CA", lambda: asking(extension(make.BASIC_CONSTRAINTS, sequence(), critical=TRUE))),
    ("digitalSignature", lambda: asking(extension(make.KEY_USAGE, b"\x03\x02\x07\x80", critical=TRUE))),
    ("no usage at all", lambda: asking(extension(make.KEY_USAGE, b"\x03\x01\x00"))),
    ("keyEncipherment of an RSA key", lambda: replace(
        rsa_draft(), attributes=attributes(requested(extension(make.KEY_USAGE, b"\x03\x02\x05\xa0")))).der()),
    ("the extended usages of a leaf", lambda: asking(extension(
        make.EXTENDED_KEY_USAGE, sequence(oid("1.3.6.1.5.5.7.3.1"), oid("1.3.6.1.5.5.7.3.2"))))),
    ("a subject", lambda: with_subject(set_of(named(tlv(0x0C, "Bücher".encode()))))),
    ("an empty organization", lambda: with_subject(set_of(named(tlv(0x13), "2.5.4.10")))),
    ("a country of three letters", lambda: with_subject(set_of(named(tlv(0x13, b"DEU"), "2.5.4.6")))),
    ("a subject in Teletex", lambda: with_subject(set_of(named(tlv(0x14, b"\xe9"))))),
]  # fmt: skip


@pytest.mark.parametrize("der", [pytest.param(row[1], id=row[0]) for row in HARMLESS])
def test_what_does_no_harm_is_ignored(der: Callable[[], bytes]) -> None:
    assert parse_csr(der()).names == RequestedNames()


@pytest.mark.parametrize("key", [pytest.param(ec_key(), id="EC"), pytest.param(rsa_key(), id="RSA")])
def test_a_request_for_exactly_what_a_leaf_holds_is_accepted(pki: Pki, now: datetime, key: PrivateKey) -> None:
    grant = Grant(SpiffeID.parse(CART), timedelta(hours=1))
    leaf = pki.issuer().issue(key.public_key(), grant, now=now, serial=5).leaf
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    for held in leaf.extensions:
        builder = builder.add_extension(held.value, held.critical)
    request = builder.sign(key, signing_hash(key)).public_bytes(serialization.Encoding.PEM)
    assert parse_csr_pem(request).names.uris == (CART,)


def test_names_are_collected_by_kind_and_in_order() -> None:
    der = naming(uri(b"spiffe://a/b"), dns(b"b.example"), uri(b"https://c"), dns(b"a.example"))
    assert parse_csr(der).names == RequestedNames(
        uris=("spiffe://a/b", "https://c"), dns=("b.example", "a.example"), others=()
    )


def test_names_in_the_request_of_microsoft_tools_are_collected_too() -> None:
    names = extension(make.SAN, sequence(dns(b"a.example")))
    der = with_attributes(requested(names, attribute_type=make.MICROSOFT_EXTENSION_REQUEST))
    assert parse_csr(der).names == RequestedNames(dns=("a.example",))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (tlv(0x87, b"\x0a\0\0\1"), "10.0.0.1"),
        (tlv(0x87, bytes(15) + b"\1"), "::1"),
        (tlv(0x81, CART.encode()), f"email:{CART}"),
        (tlv(0x88, b"\x2a\x03"), "registered ID:1.2.3"),
        (tlv(0xA0, oid("1.2.3"), tlv(0xA0, tlv(0x0C, CART.encode()))), "other name:1.2.3"),
        (tlv(0xA4, sequence(set_of(named(tlv(0x0C, b"cart"))))), "directory name:CN=cart"),
    ],
)
def test_names_of_other_kinds_are_kept_apart_and_never_look_like_a_uri(name: bytes, text: str) -> None:
    assert parse_csr(naming(name)).names == RequestedNames(others=(text,))


# ------------------------------------------------------------------------------------ create_csr

SEGMENTS = st.text("abcXYZ019._-", min_size=1, max_size=20).filter(lambda text: text not in (".", ".."))
IDS = st.builds(
    lambda name, path: SpiffeID(TrustDomain(name), "".join(f"/{segment}" for segment in path)),
    st.from_regex(r"[a-z0-9._-]{1,40}", fullmatch=True),
    st.lists(SEGMENTS, min_size=1, max_size=6),
)
KEYS = [*map(generate_key, (KeyType.P256, KeyType.P384)), rsa_key(), ed25519.Ed25519PrivateKey.generate()]


@given(key=st.sampled_from(KEYS), spiffe_id=st.none() | IDS)
def test_what_is_made_is_read_back(key: PrivateKey, spiffe_id: SpiffeID | None) -> None:
    request = parse_csr_pem(create_csr(key, spiffe_id), CsrPolicy(allow_ed25519=True))
    assert request.public_key == key.public_key()
    assert request.spki == public_key_der(key.public_key())
    assert request.names == RequestedNames(uris=(str(spiffe_id),) if spiffe_id else ())


def test_a_new_request_says_nothing_but_the_id() -> None:
    made = x509.load_pem_x509_csr(create_csr(ec_key(), SpiffeID.parse(CART)))
    assert made.subject == x509.Name([])
    assert [(extension.oid, extension.critical) for extension in made.extensions] == [
        (x509.SubjectAlternativeName.oid, True)
    ]


# ---------------------------------------------------------------------------------------- fuzzing

WHOLE = replace(
    ec_draft(),
    subject=sequence(set_of(named(tlv(0x0C, b"cart")))),
    attributes=attributes(
        attribute(make.CHALLENGE_PASSWORD, tlv(0x0C, b"secret")),
        requested(
            extension(
                make.SAN, sequence(uri(CART.encode()), dns(b"a.example"), tlv(0x87, bytes(4)), tlv(0x81, b"a@b"))
            ),
            extension(make.KEY_USAGE, b"\x03\x02\x07\x80", critical=TRUE),
            extension(make.EXTENDED_KEY_USAGE, sequence(oid("1.3.6.1.5.5.7.3.1"))),
            extension(make.BASIC_CONSTRAINTS, sequence()),
            extension("2.5.29.30", sequence(tlv(0xA0, sequence(uri(b"a"))))),
            extension("2.5.29.31", sequence(sequence(tlv(0xA0, tlv(0xA0, uri(b"http://a")))))),
            extension("2.5.29.35", sequence(tlv(0x80, b"id"))),
            extension("1.3.6.1.5.5.7.1.24", sequence(integer(5))),
        ),
    ),
)
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3)


def edited(data: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    """Some bytes at some places replaced, put in or taken out."""
    for place, put, take in edits:
        start = place % (len(data) + 1)
        data = data[:start] + put + data[start + take :]
    return data


def judged(data: bytes) -> SigningRequest | InvalidCSR:
    """The only two outcomes that there are; anything else fails the test that calls this."""
    try:
        return parse_csr(data, CsrPolicy(allow_ed25519=True, allow_p521=True))
    except InvalidCSR as refused:
        return refused


@given(EDITS)
def test_a_changed_der_is_never_accepted(edits: list[tuple[int, bytes, int]]) -> None:
    der = WHOLE.der()
    changed = edited(der, edits)
    assert changed == der or isinstance(judged(changed), InvalidCSR)


@given(EDITS)
def test_whatever_is_signed_the_outcome_is_a_request_or_invalid_csr(edits: list[tuple[int, bytes, int]]) -> None:
    info = edited(WHOLE.info(), edits)
    judged(sequence(info, WHOLE.algorithm, make.bit_string(WHOLE.sign(info))))


@given(EDITS)
def test_whatever_is_asked_for_the_outcome_is_a_request_or_invalid_csr(edits: list[tuple[int, bytes, int]]) -> None:
    wanted = edited(WHOLE.attributes[3:], edits)
    judged(replace(WHOLE, attributes=tlv(0xA0, wanted)).der())


@given(EDITS)
def test_whatever_the_key_is_the_outcome_is_a_request_or_invalid_csr(edits: list[tuple[int, bytes, int]]) -> None:
    spki = edited(WHOLE.spki[2:], edits)
    judged(replace(WHOLE, spki=sequence(spki)).der())


@given(EDITS)
def test_a_changed_pem_is_the_same_request_or_none(edits: list[tuple[int, bytes, int]]) -> None:
    outcome = judged(edited(pem(WHOLE.der()), edits))
    assert isinstance(outcome, InvalidCSR) or outcome.public_key == ec_key().public_key()


@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    assert isinstance(judged(noise), InvalidCSR)
    assert isinstance(judged(pem(noise)), InvalidCSR)
