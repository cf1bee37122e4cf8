from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import InvalidBundle
from citadel_py.core.secrets import CertificateSecret, TrustSecret
from citadel_py.core.spiffe import TrustDomain

if TYPE_CHECKING:
    from tests.core.conftest import Pki


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
    assert TrustSecret("A", (bundle,)).version != TrustSecret("A", (bundle,), use_spiffe_validator=True).version


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
    assert TrustSecret("ALL", (bundle, other), use_spiffe_validator=True).bundles == (bundle, other)


def test_a_trust_domain_is_not_named_twice(bundle: Bundle) -> None:
    with pytest.raises(InvalidBundle) as caught:
        TrustSecret("ALL", (bundle, bundle), use_spiffe_validator=True)
    assert caught.value.rule == "duplicate_trust_domain"


def test_the_key_is_not_in_the_repr_of_a_secret() -> None:
    assert "top-secret" not in repr(CertificateSecret("default", b"chain", b"top-secret"))
