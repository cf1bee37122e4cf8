from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from citadel_py.core.bundle import Bundle
from citadel_py.core.context_options import ContextOptions, CrlCheck, PeerMatcher
from citadel_py.core.crl import build_crl
from citadel_py.core.errors import InvalidBundle
from citadel_py.core.secrets import CertificateSecret, TrustSecret
from citadel_py.core.spiffe import TrustDomain
from tests.core.conftest import NOW

if TYPE_CHECKING:
    from tests.core.conftest import Pki

SPIFFE = ContextOptions(use_spiffe_validator=True)


@pytest.fixture
def other(bundle: Bundle) -> Bundle:
    return replace(bundle, trust_domain=TrustDomain("other.org"))


@pytest.fixture
def bundle(pki: Pki) -> Bundle:
    return pki.bundle


def test_equal_content_has_an_equal_version_and_other_content_another() -> None:
    one = CertificateSecret("default", b"chain", b"key")
    assert one.version == CertificateSecret("default", b"chain", b"key").version
    others = [CertificateSecret("x", b"chain", b"key"), CertificateSecret("default", b"chai", b"nkey")]
    assert one.version not in {each.version for each in others}


def test_the_sequence_of_a_bundle_does_not_change_the_version_of_its_content(bundle: Bundle) -> None:
    later = replace(bundle, sequence=bundle.sequence + 1)
    assert TrustSecret("ROOTCA", (bundle,)).version == TrustSecret("ROOTCA", (later,)).version


def test_the_validator_is_part_of_the_version(bundle: Bundle) -> None:
    assert TrustSecret("A", (bundle,)).version != TrustSecret("A", (bundle,), SPIFFE).version


def test_a_certificate_without_chain_or_key_cannot_be_built() -> None:
    for chain, key in ((b"", b"key"), (b"chain", b"")):
        with pytest.raises(InvalidBundle) as caught:
            CertificateSecret("default", chain, key)
        assert caught.value.rule == "empty_secret"


def test_an_empty_validation_context_cannot_be_built() -> None:
    with pytest.raises(InvalidBundle) as caught:
        TrustSecret("ROOTCA", ())
    assert caught.value.rule == "empty_validation_context"


def test_trust_domains_are_not_mixed_without_the_validator_that_keeps_them_apart(bundle: Bundle, other: Bundle) -> None:
    with pytest.raises(InvalidBundle) as caught:
        TrustSecret("ALL", (bundle, other))
    assert caught.value.rule == "mixed_trust_domains"
    assert TrustSecret("ALL", (bundle, other), SPIFFE).bundles == (bundle, other)


def test_a_trust_domain_is_not_named_twice(bundle: Bundle) -> None:
    with pytest.raises(InvalidBundle) as caught:
        TrustSecret("ALL", (bundle, bundle), SPIFFE)
    assert caught.value.rule == "duplicate_trust_domain"


def test_options_and_revocation_lists_are_part_of_the_version(bundle: Bundle, pki: Pki) -> None:
    crl = build_crl(pki.root, [], number=1, now=NOW, next_update=NOW + timedelta(days=1))
    later = build_crl(pki.root, [], number=2, now=NOW, next_update=NOW + timedelta(days=1))
    options = [
        ContextOptions(),
        ContextOptions(peers=(PeerMatcher.parse("spiffe://example.org/a"),)),
        ContextOptions(peers=(PeerMatcher.parse("spiffe://example.org/a/**"),)),
    ]
    checked = [
        TrustSecret("A", (bundle,), ContextOptions(crl=check), {bundle.trust_domain: (each,)})
        for check, each in ((CrlCheck.LEAF, crl), (CrlCheck.PATH, crl), (CrlCheck.PATH, later))
    ]
    versions = {each.version for each in (*(TrustSecret("A", (bundle,), each) for each in options), *checked)}
    assert len(versions) == len(options) + len(checked)


@pytest.mark.parametrize("check", list(CrlCheck))
def test_revocation_lists_and_their_check_come_together(check: CrlCheck, bundle: Bundle, pki: Pki) -> None:
    crl = build_crl(pki.root, [], number=1, now=NOW, next_update=NOW + timedelta(days=1))
    lists = {bundle.trust_domain: (crl,)} if check is CrlCheck.OFF else {}
    with pytest.raises(InvalidBundle) as caught:
        TrustSecret("ROOTCA", (bundle,), ContextOptions(crl=check), lists)
    assert caught.value.rule == "crl_missing"


def test_no_peer_is_admitted_of_a_trust_domain_without_its_bundle(bundle: Bundle) -> None:
    """The plain validator would let our authority vouch for it."""
    with pytest.raises(InvalidBundle) as caught:
        TrustSecret("ROOTCA", (bundle,), ContextOptions(peers=(PeerMatcher.parse("spiffe://other.org/**"),)))
    assert caught.value.rule == "peer_of_other_domain"


def test_the_key_is_not_in_the_repr_of_a_secret() -> None:
    assert "top-secret" not in repr(CertificateSecret("default", b"chain", b"top-secret"))
