"""Which secrets an SVID makes, under which names."""

from __future__ import annotations

from datetime import timedelta

import pytest

from citadel_py.core.context_options import ContextOptions, CrlCheck, PeerMatcher
from citadel_py.core.crl import CRL, build_crl
from citadel_py.core.secrets import CertificateSecret, TrustSecret
from citadel_py.sds.names import secrets_of, trust_of, why_withheld
from tests.store.things import NOW, WEB, Pki, new_held, new_pki

PATH = ContextOptions(crl=CrlCheck.PATH)


def test_an_svid_is_served_as_certificate_and_trust_under_the_names_that_envoy_asks_for() -> None:
    held = new_held(new_pki())
    secrets = {secret.name: secret for secret in secrets_of(held)}
    assert set(secrets) == {"default", "ROOTCA", "ALL", str(WEB), "spiffe://example.org"}
    for name in ("default", str(WEB)):
        secret = secrets[name]
        assert isinstance(secret, CertificateSecret)
        assert secret.chain_pem == held.svid.chain_pem()
    for name in ("ROOTCA", "spiffe://example.org", "ALL"):
        secret = secrets[name]
        assert isinstance(secret, TrustSecret)
        assert secret.bundles == (held.bundle,)
        assert secret.options.use_spiffe_validator == (name == "ALL")


def test_trust_comes_before_what_it_shall_trust() -> None:
    kinds = [type(secret) for secret in secrets_of(new_held(new_pki()))]
    assert kinds == sorted(kinds, key=[TrustSecret, CertificateSecret].index)


def test_only_what_changed_has_another_version_after_a_renewal() -> None:
    pki = new_pki()
    before, after = ({each.name: each.version for each in secrets_of(new_held(pki))} for _ in range(2))
    assert {name for name in before if before[name] != after[name]} == {"default", str(WEB)}


def test_federated_bundles_are_served_apart_and_never_with_envoys_default_validator() -> None:
    """By which the authority of one trust domain could mint IDs of another."""
    held, friend = new_held(new_pki()), new_held(new_pki("friend.test")).bundle
    secrets = {secret.name: secret for secret in secrets_of(held, [friend])}
    trust = {name: secret for name, secret in secrets.items() if isinstance(secret, TrustSecret)}
    assert {name: secret.bundles for name, secret in trust.items()} == {
        "ROOTCA": (held.bundle,),
        "spiffe://example.org": (held.bundle,),
        "spiffe://friend.test": (friend,),
        "ALL": (held.bundle, friend),
    }
    assert [name for name, secret in trust.items() if not secret.options.use_spiffe_validator] == [
        "ROOTCA",
        "spiffe://example.org",
    ]


def test_the_own_bundle_may_go_with_the_spiffe_validator() -> None:
    secrets = secrets_of(new_held(new_pki()), options=ContextOptions(use_spiffe_validator=True))
    assert all(secret.options.use_spiffe_validator for secret in secrets if isinstance(secret, TrustSecret))


def lists_of(pki: Pki) -> tuple[CRL, ...]:
    until = NOW + timedelta(days=1)
    return tuple(build_crl(each, [], number=1, now=NOW, next_update=until) for each in (pki.root, pki.intermediate))


def test_without_lists_of_the_own_trust_domain_contexts_that_check_revocation_are_withheld() -> None:
    pki, friend = new_pki(), new_pki("friend.test")
    offer = trust_of(pki.bundle, [friend.bundle], PATH, crls={friend.bundle.trust_domain: lists_of(friend)})
    assert set(offer.withheld) == {"ROOTCA", "ALL", "spiffe://example.org"}
    assert all("revocation lists of example.org" in reason for reason in offer.withheld.values())
    assert [secret.name for secret in offer.secrets] == ["spiffe://friend.test"]


def test_a_trust_domain_without_lists_is_verified_without_them_beside_the_own() -> None:
    pki, friend = new_pki(), new_pki("friend.test")
    offer = trust_of(pki.bundle, [friend.bundle], PATH, crls={pki.bundle.trust_domain: lists_of(pki)})
    checks = {each.name: each.options.crl for each in offer.secrets if isinstance(each, TrustSecret)}
    assert checks == {
        "ROOTCA": CrlCheck.PATH,
        "spiffe://example.org": CrlCheck.PATH,
        "ALL": CrlCheck.PATH,
        "spiffe://friend.test": CrlCheck.OFF,
    }


def test_leaves_alone_are_not_checked_by_the_spiffe_validator() -> None:
    pki = new_pki()
    options = ContextOptions(crl=CrlCheck.LEAF)
    offer = trust_of(pki.bundle, (), options, crls={pki.bundle.trust_domain: lists_of(pki)})
    assert set(offer.withheld) == {"ALL"}


def test_peers_of_one_trust_domain_leave_no_context_of_another_open_to_everybody() -> None:
    own, friend = new_pki().bundle, new_pki("friend.test").bundle
    matcher = PeerMatcher.parse("spiffe://example.org/shop/**")
    offer = trust_of(own, [friend], ContextOptions(peers=(matcher,)))
    assert set(offer.withheld) == {"spiffe://friend.test"}
    assert {each.options.peers for each in offer.secrets if isinstance(each, TrustSecret)} == {(matcher,)}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("file-cert:/etc/tls.crt~/etc/tls.key", "files"),
        ("file-root:/etc/ca.crt", "files"),
        ("kubernetes://shop/tls", "Kubernetes"),
        ("spiffe://example.org/other", "identity"),
        ("*", "names them"),
        ("other", "no secret has this name"),
    ],
)
def test_it_is_told_why_a_name_is_withheld(name: str, word: str) -> None:
    assert word in why_withheld(name)
