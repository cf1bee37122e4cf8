"""The table 'What we issue', row by row, on certificates that the real issuer made."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from citadel_py.core.csr import SigningRequest
from citadel_py.core.engine import Engine
from citadel_py.core.errors import InvalidConfiguration, InvalidKey, NotReady
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType, generate_key, public_key_sha256
from citadel_py.core.pem import certificate_pem
from citadel_py.core.policy import Caller, Grant, Method, TTLLimits, Wanted
from citadel_py.core.profile import (
    Authority,
    Validity,
    intermediate_certificate,
    root_certificate,
    serial_number,
)
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.verify import verify_svid

if TYPE_CHECKING:
    from tests.core.conftest import Pki, PkiMaker

TD = TrustDomain("example.org")
WEB = SpiffeID.mesh(TD, "shop", "web")
HOUR = timedelta(hours=1)


def leaf_of(issuer: Issuer, now: datetime, key_type: KeyType = KeyType.P256, ttl: timedelta = HOUR) -> x509.Certificate:
    return issuer.issue(generate_key(key_type).public_key(), Grant(WEB, ttl), now=now, serial=0xFEED).leaf


def extension(certificate: x509.Certificate, kind: type[Any]) -> tuple[Any, bool]:
    found = certificate.extensions.get_extension_for_class(kind)
    return found.value, found.critical


def usages(certificate: x509.Certificate) -> set[str]:
    usage, critical = extension(certificate, x509.KeyUsage)
    assert critical
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return {name for name in (*names, "key_cert_sign", "crl_sign") if getattr(usage, name)}


@pytest.mark.parametrize(("place", "path_length"), [("root", 1), ("intermediate", 0)])
def test_an_authority_has_the_profile_of_its_place(pki: Pki, place: str, path_length: int) -> None:
    certificate = getattr(pki, place).certificate
    assert extension(certificate, x509.BasicConstraints) == (
        x509.BasicConstraints(ca=True, path_length=path_length),
        True,
    )
    assert usages(certificate) == {"key_cert_sign", "crl_sign"}
    names, _ = extension(certificate, x509.SubjectAlternativeName)
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://example.org")]
    assert not [
        each for each in certificate.extensions if isinstance(each.value, x509.ExtendedKeyUsage | x509.NameConstraints)
    ]


def test_every_authority_has_a_name_of_its_own(now: datetime) -> None:
    key = generate_key(KeyType.P256)
    validity = Validity(now, now + HOUR)
    names = {root_certificate(key, TD, validity, serial=serial).subject for serial in (1, 2, 3)}
    assert len(names) == 3


def test_a_leaf_has_an_empty_subject_and_one_critical_uri_name(pki: Pki, now: datetime) -> None:
    leaf = leaf_of(pki.issuer(), now)
    names, critical = extension(leaf, x509.SubjectAlternativeName)
    assert list(leaf.subject) == []
    assert list(names) == [x509.UniformResourceIdentifier(str(WEB))]
    assert critical


def test_a_leaf_is_for_both_sides_of_tls_and_is_no_authority(pki: Pki, now: datetime) -> None:
    leaf = leaf_of(pki.issuer(), now)
    purposes, critical = extension(leaf, x509.ExtendedKeyUsage)
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not critical
    assert extension(leaf, x509.BasicConstraints) == (x509.BasicConstraints(ca=False, path_length=None), True)


@pytest.mark.parametrize(
    ("key_type", "expected"),
    [
        (KeyType.P256, {"digital_signature"}),
        (KeyType.P384, {"digital_signature"}),
        (KeyType.RSA2048, {"digital_signature", "key_encipherment"}),
    ],
)
def test_key_encipherment_is_for_rsa_leaves_only(
    pki: Pki, now: datetime, key_type: KeyType, expected: set[str]
) -> None:
    assert usages(leaf_of(pki.issuer(), now, key_type)) == expected


def test_key_identifiers_link_the_chain(pki: Pki, now: datetime) -> None:
    leaf = leaf_of(pki.issuer(), now)
    parent, _ = extension(pki.intermediate.certificate, x509.SubjectKeyIdentifier)
    link, _ = extension(leaf, x509.AuthorityKeyIdentifier)
    own, _ = extension(leaf, x509.SubjectKeyIdentifier)
    assert link.key_identifier == parent.digest == bytes.fromhex(pki.intermediate.id)
    assert own == x509.SubjectKeyIdentifier.from_public_key(leaf.public_key())


def test_no_leaf_carries_further_extensions(pki: Pki, now: datetime) -> None:
    kinds = {type(each.value).__name__ for each in leaf_of(pki.issuer(), now).extensions}
    names = (
        "AuthorityKeyIdentifier BasicConstraints ExtendedKeyUsage KeyUsage SubjectAlternativeName SubjectKeyIdentifier"
    )
    assert kinds == set(names.split())


def test_a_common_name_appears_only_where_configured_and_then_the_names_are_not_critical(
    pki: Pki, now: datetime
) -> None:
    issuer = Issuer(
        pki.intermediate, (pki.intermediate.certificate,), pki.bundle, pki.root.certificate, common_name=True
    )
    grant = Grant(WEB, HOUR, ("web.shop.svc",))
    leaf = issuer.issue(generate_key(KeyType.P256).public_key(), grant, now=now, serial=5).leaf
    assert leaf.subject.rfc4514_string() == "CN=web.shop.svc"
    assert not extension(leaf, x509.SubjectAlternativeName)[1]


def test_a_leaf_begins_two_minutes_ago_and_ends_after_its_lifetime(make_pki: PkiMaker, now: datetime) -> None:
    issuer = make_pki(start=now - timedelta(days=1)).issuer()
    leaf = leaf_of(issuer, now + timedelta(microseconds=999_999))
    assert leaf.not_valid_before_utc == now - timedelta(minutes=2)
    assert leaf.not_valid_after_utc == now + HOUR


def test_a_leaf_never_begins_before_its_issuer(pki: Pki, now: datetime) -> None:
    assert leaf_of(pki.issuer(), now).not_valid_before_utc == now


@pytest.mark.parametrize(("root", "intermediate"), [(10, 9), (10, 10)])
def test_a_leaf_ends_with_the_first_certificate_above_it(
    make_pki: PkiMaker, now: datetime, root: int, intermediate: int
) -> None:
    pki = make_pki(root_lifetime=timedelta(days=root), intermediate_lifetime=timedelta(days=intermediate))
    leaf = leaf_of(pki.issuer(), now, ttl=timedelta(days=80))
    assert leaf.not_valid_after_utc == now + timedelta(days=intermediate)


def test_an_expired_authority_issues_nothing(make_pki: PkiMaker, now: datetime) -> None:
    issuer = make_pki(intermediate_lifetime=timedelta(days=1)).issuer()
    with pytest.raises(NotReady) as caught:
        leaf_of(issuer, now + timedelta(days=1))
    assert caught.value.rule == "authority_not_valid_now"


def test_an_intermediate_that_would_outlive_its_root_is_refused(make_pki: PkiMaker) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        make_pki(root_lifetime=timedelta(days=1), intermediate_lifetime=timedelta(days=2))
    assert caught.value.rule == "authority_outlives_parent"


def test_a_default_lifetime_longer_than_the_authority_has_left_is_an_error_at_start(
    make_pki: PkiMaker, now: datetime
) -> None:
    issuer = make_pki(intermediate_lifetime=timedelta(hours=23)).issuer()
    with pytest.raises(InvalidConfiguration) as caught:
        issuer.check_ttl_fits(TTLLimits(), now=now)
    assert caught.value.rule == "ttl_beyond_authority"


def test_a_key_of_another_authority_is_noticed_before_anything_is_signed(make_pki: PkiMaker, now: datetime) -> None:
    pki, other = make_pki(), make_pki()
    mixed = Authority(pki.intermediate.certificate, other.intermediate.key)
    with pytest.raises(InvalidConfiguration) as caught:
        Issuer.activated(mixed, (pki.intermediate.certificate,), pki.bundle, now=now, serial=1)
    assert caught.value.rule == "authority_key_mismatch"


def test_a_bundle_without_the_root_of_the_chain_is_noticed_at_activation(make_pki: PkiMaker, now: datetime) -> None:
    pki, other = make_pki(), make_pki()
    with pytest.raises(InvalidConfiguration) as caught:
        Issuer.activated(pki.intermediate, (pki.intermediate.certificate,), other.bundle, now=now, serial=1)
    assert caught.value.rule == "authority_not_in_bundle"


def test_an_authority_of_another_trust_domain_is_noticed_at_activation(pki: Pki, now: datetime) -> None:
    key = generate_key(KeyType.P256)
    foreign = intermediate_certificate(
        key.public_key(), TrustDomain("other.org"), pki.root, Validity(now, now + HOUR), serial=9
    )
    with pytest.raises(InvalidConfiguration) as caught:
        Issuer.activated(Authority(foreign, key), (foreign,), pki.bundle, now=now, serial=1)
    assert caught.value.rule == "authority_unusable"


@pytest.mark.parametrize("key_type", [KeyType.RSA2048])
def test_an_authority_key_that_relying_parties_refuse_is_refused(make_pki: PkiMaker, key_type: KeyType) -> None:
    with pytest.raises(InvalidKey) as caught:
        make_pki(key_type)
    assert caught.value.rule == "authority_key_kind"


def test_an_authority_for_a_trust_domain_that_go_cannot_parse_is_refused(now: datetime) -> None:
    key = generate_key(KeyType.P256)
    with pytest.raises(InvalidConfiguration) as caught:
        root_certificate(key, TrustDomain("a..b"), Validity(now, now + HOUR), serial=1)
    assert caught.value.rule == "trust_domain_empty_label"


def test_a_trust_domain_longer_than_an_organization_name_gets_authorities_that_verify(now: datetime) -> None:
    trust_domain, key = TrustDomain("a" * 255), generate_key(KeyType.P256)
    certificate = root_certificate(key, trust_domain, Validity(now, now + HOUR), serial=1)
    assert extension(certificate, x509.SubjectAlternativeName)[0][0].value == "spiffe://" + "a" * 255


@pytest.mark.parametrize("bits", [bytes(16), b"\xff" * 16, bytes(15) + b"\x02"])
def test_serial_numbers_are_positive_and_always_sixteen_octets(bits: bytes) -> None:
    assert 2**126 <= serial_number(bits) < 2**127
    assert len(f"{serial_number(bits):x}") == 32


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
@pytest.mark.parametrize("key_type", [KeyType.P256, KeyType.P384, KeyType.RSA3072])
def test_openssl_in_strict_mode_accepts_chains_under_every_kind_of_authority(
    make_pki: PkiMaker, now: datetime, key_type: KeyType, tmp_path: Path
) -> None:
    pki = make_pki(key_type)
    for name, certificate in (
        ("root", pki.root.certificate), ("inter", pki.intermediate.certificate), ("leaf", leaf_of(pki.issuer(), now)),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(certificate_pem(certificate))
    moment = str(int(now.timestamp()) + 60)
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-attime",
        moment,
        "-purpose",
        "sslclient",
        "-CAfile",
        "root",
        "-untrusted",
        "inter",
        "leaf",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_what_the_engine_prepares_verifies_and_its_entry_tells_all_of_it(
    engine: Engine, pki: Pki, now: datetime, signing_request: Callable[[], SigningRequest]
) -> None:
    request = signing_request()
    issuance = engine.prepare(request, Caller(Method.JWT, "jwt:me", WEB), Wanted(), now=now, request_id="r1")
    assert verify_svid(issuance.svid.chain, pki.bundle, now=now, expected=WEB).id == WEB
    entry = issuance.entry
    assert (entry.kind, entry.spiffe_id, entry.caller, entry.method) == ("issued", str(WEB), "jwt:me", "jwt")
    assert (entry.serial, entry.authority_id) == (f"{issuance.svid.leaf.serial_number:x}", pki.intermediate.id)
    assert entry.public_key_sha256 == public_key_sha256(request.public_key)
    assert (entry.not_before, entry.not_after) == (issuance.svid.not_before, issuance.svid.not_after)
    assert (entry.request_id, entry.time) == ("r1", now)


def test_two_certificates_never_share_a_serial(
    engine: Engine, now: datetime, signing_request: Callable[[], SigningRequest]
) -> None:
    caller = Caller(Method.JWT, "jwt:me", WEB)
    serials = {
        engine.prepare(signing_request(), caller, Wanted(), now=now, request_id="r").svid.serial for _ in range(3)
    }
    assert len(serials) == 3
