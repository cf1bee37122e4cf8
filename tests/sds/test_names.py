"""Which secrets an SVID makes, under which names."""

from __future__ import annotations

from citadel_py.core.secrets import CertificateSecret, TrustSecret
from citadel_py.sds.names import secrets_of
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
