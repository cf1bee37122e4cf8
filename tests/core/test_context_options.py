"""Options of validation contexts: how peers are written, and what cannot be combined."""

from __future__ import annotations

import pytest

from citadel_py.core.context_options import ContextOptions, CrlCheck, PeerMatcher
from citadel_py.core.errors import BadInput


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("spiffe://example.org/shop", "spiffe://example.org/shop"),
        ("spiffe://example.org/ns/shop/**", "spiffe://example.org/ns/shop/"),
        ("spiffe://example.org/**", "spiffe://example.org/"),
    ],
)
def test_a_matcher_is_written_as_it_is_read(text: str, value: str) -> None:
    matcher = PeerMatcher.parse(text)
    assert matcher.value == value
    assert str(matcher) == text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("spiffe://example.org", "peer_matcher"),
        ("spiffe://example.org/ns/*/sa/web", "peer_matcher"),
        ("spiffe://example.org/ns/**/web", "peer_matcher"),
        ("spiffe://example.org/shop*", "peer_matcher"),
        ("spiffe://example.org/**/**", "peer_matcher"),
        ("spiffe://example.org//**", "path_trailing_slash"),
        ("example.org/**", "spiffe_id_scheme"),
        ("**", "peer_matcher"),
    ],
)
def test_what_envoy_cannot_compare_with_is_refused(text: str, rule: str) -> None:
    with pytest.raises(BadInput) as caught:
        PeerMatcher.parse(text)
    assert caught.value.rule == rule


def test_the_spiffe_validator_cannot_check_leaves_alone() -> None:
    """It would look for the lists of all issuers, and refuse everybody."""
    with pytest.raises(BadInput) as caught:
        ContextOptions(use_spiffe_validator=True, crl=CrlCheck.LEAF)
    assert caught.value.rule == "crl_leaf_unsupported"
