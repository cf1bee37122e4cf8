"""Which secrets an SVID makes, under which names."""

from __future__ import annotations

import pytest

from citadel_py.core.secrets import CertificateSecret, TrustSecret
from citadel_py.sds.names import secrets_of, why_withheld
from tests.store.things import WEB, new_held, new_pki


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
        assert secret.use_spiffe_validator == (name == "ALL")


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
    assert [name for name, secret in trust.items() if not secret.use_spiffe_validator] == [
        "ROOTCA",
        "spiffe://example.org",
    ]


def test_the_own_bundle_may_go_with_the_spiffe_validator() -> None:
    secrets = secrets_of(new_held(new_pki()), has_validator=True)
    assert all(secret.use_spiffe_validator for secret in secrets if isinstance(secret, TrustSecret))


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
