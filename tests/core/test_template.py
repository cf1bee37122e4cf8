"""A leaf that is filled in is the leaf that the library's builder makes, byte for byte, or is left to the builder."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core import profile, template
from citadel_py.core.errors import CitadelError, InvalidConfiguration
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import (
    KeyType,
    PrivateKey,
    PublicKey,
    generate_key,
    public_key_der,
    sign_message,
    signing_hash,
)
from citadel_py.core.pem import certificate_pem
from citadel_py.core.policy import Grant
from citadel_py.core.profile import Authority, Validity, root_certificate, serial_number
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.template import LeafFields, Templates
from citadel_py.core.verify import verify_svid

if TYPE_CHECKING:
    from tests.core.conftest import Pki, PkiMaker

TD = TrustDomain("example.org")
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
HOUR = timedelta(hours=1)
FIRST = datetime(1950, 1, 1, tzinfo=UTC)  # that a certificate can state
VALIDITY = Validity(NOW, NOW + HOUR)
AUTHORITIES = (KeyType.P256, KeyType.P384, KeyType.RSA3072)

SHORTEST = len("spiffe://example.org/x")
# Where a length in DER takes one octet more: of the name itself, of the lists around it, of the extension.
BOUNDARIES = [each for edge in (128, 256) for each in range(edge - 12, edge + 3)]

MAKERS: dict[str, Callable[[], PrivateKey]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA-2052": lambda: rsa.generate_private_key(65537, 2052),  # no whole number of octets
}


@cache
def authority(key_type: KeyType) -> Authority:
    key = generate_key(key_type)
    return Authority(root_certificate(key, TD, Validity(NOW, NOW + 10 * HOUR), serial=11), key)


@cache
def keys(kind: str) -> tuple[PublicKey, ...]:
    return tuple(MAKERS[kind]().public_key() for _ in range(3))


def spiffe_id(length: int, letter: str = "x") -> SpiffeID:
    return SpiffeID(TD, "/" + letter * (length - SHORTEST + 1))


def built(
    by: Authority, key: PublicKey, id: SpiffeID, validity: Validity, serial: int
) -> tuple[LeafFields, x509.Certificate]:
    """A leaf as the builder makes it, and its fields."""
    key_id = profile.authority_key_identifier(by.certificate)
    grant = Grant(id, HOUR)
    builder = profile.leaf_builder(
        key, grant, validity, serial=serial, issuer=by.certificate.subject, issuer_key_id=key_id
    )
    fields = LeafFields.of(public_key_der(key), grant, validity, serial=serial)
    assert fields is not None
    return fields, builder.sign(by.key, signing_hash(by.key))


SERIALS = st.binary(min_size=16, max_size=16).map(serial_number)
STARTS = st.integers(0, (datetime(2049, 1, 1, tzinfo=UTC) - FIRST) // timedelta(seconds=1)).map(
    lambda seconds: FIRST + timedelta(seconds=seconds)
)
VALIDITIES = st.builds(
    lambda start, seconds: Validity(start, start + timedelta(seconds=seconds)), STARTS, st.integers(1, 90 * 86400)
)
LENGTHS = st.sampled_from(BOUNDARIES) | st.integers(SHORTEST, 2048)


@given(
    by=st.sampled_from(AUTHORITIES),
    kind=st.sampled_from(sorted(MAKERS)),
    length=LENGTHS,
    letters=st.permutations("xyz"),
    validities=st.lists(VALIDITIES, min_size=3, max_size=3),
    serials=st.lists(SERIALS, min_size=3, max_size=3, unique=True),
)
def test_what_is_filled_in_is_what_the_builder_makes(
    by: KeyType, kind: str, length: int, letters: list[str], validities: list[Validity], serials: list[int]
) -> None:
    templates = Templates()
    leaves = [
        built(authority(by), *parts)
        for parts in zip(keys(kind), (spiffe_id(length, each) for each in letters), validities, serials, strict=True)
    ]
    for fields, leaf in leaves[:2]:
        assert templates.find(fields) is None
        templates.learn(fields, leaf)
    fields, leaf = leaves[2]
    found = templates.find(fields)
    assert found is not None
    assert found.fill(fields) == leaf.tbs_certificate_bytes
    assert found.seal(leaf.tbs_certificate_bytes, leaf.signature) == leaf.public_bytes(Encoding.DER)


SERIAL = 1 << 126
WEB = spiffe_id(40)


@pytest.mark.parametrize(
    ("grant", "validity", "serial"),
    [
        pytest.param(Grant(WEB, HOUR, ("web.example.org",)), VALIDITY, SERIAL, id="a DNS name"),
        pytest.param(Grant(WEB, HOUR, (), (IPv4Address("10.0.0.1"),)), VALIDITY, SERIAL, id="an IP address"),
        pytest.param(Grant(TD.id, HOUR), VALIDITY, SERIAL, id="an ID without a path"),
        pytest.param(Grant(WEB, HOUR), VALIDITY, SERIAL - 1, id="a serial that may be shorter"),
        pytest.param(Grant(WEB, HOUR), VALIDITY, SERIAL * 2, id="a serial that is longer"),
        pytest.param(
            Grant(WEB, HOUR), Validity(NOW, datetime(2050, 1, 1, tzinfo=UTC)), SERIAL, id="the other form of time"
        ),
    ],
)
def test_what_has_other_fields_is_left_to_the_builder(grant: Grant, validity: Validity, serial: int) -> None:
    assert LeafFields.of(public_key_der(keys("P-256")[0]), grant, validity, serial=serial) is None


def test_a_field_that_is_there_twice_makes_no_template() -> None:
    by, templates = authority(KeyType.P256), Templates()
    own = by.key.public_key()
    for serial in range(SERIAL, SERIAL + 3):  # the key identifiers of subject and authority are the same
        fields, leaf = built(by, own, WEB, VALIDITY, serial)
        templates.learn(fields, leaf)
        assert templates.find(fields) is None


def test_a_template_is_for_one_kind_of_key_only() -> None:
    templates = learned(WEB)
    fields, _ = built(authority(KeyType.P256), keys("P-256")[0], WEB, VALIDITY, SERIAL)
    p256, brainpool = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2b24030302080101")  # names of curves
    assert templates.find(fields) is not None
    assert templates.find(fields._replace(spki=fields.spki.replace(p256, brainpool))) is None


def learned(*ids: SpiffeID, into: Templates | None = None) -> Templates:
    templates = into or Templates()
    for id, serial in itertools.product(ids, (SERIAL, SERIAL + 1)):
        templates.learn(*built(authority(KeyType.P256), keys("P-256")[0], id, VALIDITY, serial))
    return templates


def test_a_leaf_that_differs_in_more_than_its_fields_proves_nothing() -> None:
    templates = Templates()
    ours, other = authority(KeyType.P256), authority(KeyType.P384)
    for serial, by in enumerate((ours, other, ours), SERIAL):
        fields, leaf = built(by, keys("P-256")[0], WEB, VALIDITY, serial)
        templates.learn(fields, leaf)
        assert templates.find(fields) is None


def test_no_more_templates_are_kept_than_the_bound_and_the_used_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_TEMPLATES", 3)
    ids = [spiffe_id(length) for length in range(40, 45)]
    fields = [built(authority(KeyType.P256), keys("P-256")[0], id, VALIDITY, SERIAL)[0] for id in ids]
    templates = learned(*ids[:3])
    assert templates.find(fields[0]) is not None
    learned(*ids[3:], into=templates)
    assert [templates.find(each) is not None for each in fields] == [True, False, False, True, True]


# ---------------------------------------------------------------------------------- with the issuer


def no_builder(*_: object, **__: object) -> x509.CertificateBuilder:
    raise AssertionError("the builder was asked")


def issue(issuer: Issuer, key: PrivateKey, id: SpiffeID = WEB, *, serial: int) -> x509.Certificate:
    return issuer.issue(key.public_key(), Grant(id, HOUR), now=NOW, serial=serial).leaf


@pytest.mark.parametrize("key_type", AUTHORITIES)
def test_from_the_third_on_leaves_of_one_shape_need_no_builder_and_verify(
    make_pki: PkiMaker, monkeypatch: pytest.MonkeyPatch, key_type: KeyType
) -> None:
    pki = make_pki(key_type)
    issuer, key = pki.issuer(), generate_key(KeyType.P256)
    for serial in (SERIAL, SERIAL + 1):
        issue(issuer, key, serial=serial)
    monkeypatch.setattr(profile, "leaf_builder", no_builder)
    for serial in range(SERIAL, SERIAL + 20):  # signatures by ECDSA differ in length
        svid = issuer.issue(key.public_key(), Grant(WEB, HOUR), now=NOW, serial=serial)
        assert verify_svid(svid.chain, pki.bundle, now=NOW, expected=WEB).leaf.serial_number == serial
        assert svid.leaf_der == svid.leaf.public_bytes(Encoding.DER)
        assert svid.leaf_pem == certificate_pem(svid.leaf)


def test_an_activated_issuer_has_used_a_template(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = pki.issuer()
    monkeypatch.setattr(profile, "leaf_builder", no_builder)
    probe = SpiffeID(TD, "/citadel-py/probe")
    assert issue(issuer, generate_key(KeyType.P256), probe, serial=SERIAL).serial_number == SERIAL


def test_an_authority_whose_templates_do_not_verify_is_not_activated(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    seal = template.Template.seal
    forged = sign_message(pki.root.key, b"something else")
    monkeypatch.setattr(template.Template, "seal", lambda self, to_be_signed, _: seal(self, to_be_signed, forged))
    with pytest.raises(InvalidConfiguration) as caught:
        pki.issuer()
    assert caught.value.rule == "authority_unusable"


Fill = Callable[[template.Template, LeafFields], bytes]


def filled_with(**wrong: bytes) -> Fill:
    fill = template.Template.fill
    return lambda self, fields: fill(self, fields._replace(**wrong))


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(filled_with(uri=str(spiffe_id(40, "y")).encode()), id="another name"),
        pytest.param(filled_with(serial=SERIAL.to_bytes(16)), id="another number"),
        pytest.param(filled_with(spki=public_key_der(keys("P-256")[0])), id="another key"),
        pytest.param(filled_with(uri=b"spiffe://"), id="a field of another length"),
    ],
)
def test_a_leaf_that_does_not_say_what_was_meant_is_not_handed_out(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, broken: Fill
) -> None:
    issuer, key = pki.issuer(), generate_key(KeyType.P256)
    for serial in (SERIAL, SERIAL + 1):
        issue(issuer, key, serial=serial)
    monkeypatch.setattr(template.Template, "fill", broken)
    with pytest.raises(CitadelError) as caught:
        issue(issuer, key, serial=SERIAL + 2)
    assert caught.value.rule == "self_check_failed"
