"""SPIFFE IDs against a table of what other implementations take and refuse, and against their own text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from citadel_py.core.errors import InvalidSpiffeID
from citadel_py.core.spiffe import MAX_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SCHEME, SpiffeID, TrustDomain

TABLE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "spiffe-ids.json").read_text(encoding="utf-8"))

trust_domains = st.text("abcxyz0189._-", min_size=1, max_size=MAX_TRUST_DOMAIN_BYTES).map(TrustDomain)
segments = st.text("abcXYZ0189._-", min_size=1, max_size=40).filter(lambda segment: segment not in (".", ".."))
ids = st.builds(
    SpiffeID, trust_domains, st.lists(segments, max_size=8).map(lambda path: "".join(f"/{segment}" for segment in path))
)


def rule_of(text: str) -> str:
    with pytest.raises(InvalidSpiffeID) as caught:
        SpiffeID.parse(text)
    return caught.value.rule


@pytest.mark.parametrize("case", TABLE["valid"])
def test_a_valid_id_keeps_its_text_and_its_parts(case: dict[str, str]) -> None:
    parsed = SpiffeID.parse(case["id"])
    assert (str(parsed), parsed.trust_domain.name, parsed.path) == (case["id"], case["trust_domain"], case["path"])


@pytest.mark.parametrize("case", TABLE["invalid"] + TABLE["divergent"])
def test_an_invalid_id_is_refused_and_so_is_one_on_which_libraries_differ(case: dict[str, str]) -> None:
    rule_of(case["id"])


@pytest.mark.parametrize("case", TABLE["trust_domain_valid"])
def test_a_trust_domain_is_read_from_its_name_or_from_an_id(case: dict[str, str]) -> None:
    assert TrustDomain.parse(case["input"]).name == case["trust_domain"]


@pytest.mark.parametrize("case", TABLE["trust_domain_invalid"])
def test_an_invalid_trust_domain_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(InvalidSpiffeID):
        TrustDomain.parse(case["input"])


@pytest.mark.parametrize("text", TABLE["istio_identity"]["valid"])
def test_the_mesh_form_of_a_namespace_and_a_service_account(text: str) -> None:
    parsed = SpiffeID.parse(text)
    _, _, namespace, _, service_account = parsed.path.split("/")
    assert SpiffeID.mesh(parsed.trust_domain, namespace, service_account) == parsed


@pytest.mark.parametrize(
    ("namespace", "account"), [("a/b", "c"), ("a", "b/c"), ("", "b"), ("a", ""), ("..", "b"), ("a", ".")]
)
def test_the_mesh_form_takes_one_segment_for_each_part(namespace: str, account: str) -> None:
    with pytest.raises(InvalidSpiffeID):
        SpiffeID.mesh(TrustDomain("example.org"), namespace, account)


def test_lengths_end_at_2048_bytes_for_an_id_and_255_for_a_trust_domain() -> None:
    longest = SCHEME + "td/" + "a" * (MAX_ID_BYTES - len(SCHEME) - 3)
    assert len(str(SpiffeID.parse(longest))) == 2048
    assert rule_of(longest + "a") == "spiffe_id_length"
    assert SpiffeID.parse(SCHEME + "a" * 255).trust_domain.name == "a" * 255
    assert rule_of(SCHEME + "a" * 256) == "trust_domain_length"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("https://example.org/a", "spiffe_id_scheme"),
        ("SPIFFE://example.org/a", "spiffe_id_scheme"),
        ("spiffe:///a", "trust_domain_missing"),
        ("spiffe://Example.org/a", "trust_domain_characters"),
        ("spiffe://example.org\n", "trust_domain_characters"),
        ("spiffe://example.org/a/", "path_trailing_slash"),
        ("spiffe://example.org//a", "path_empty_segment"),
        ("spiffe://example.org/../a", "path_dot_segment"),
        ("spiffe://example.org/a?b", "path_characters"),
        ("spiffe://example.org/a\n", "path_characters"),
    ],
)
def test_the_rule_that_was_broken_is_named(text: str, rule: str) -> None:
    assert rule_of(text) == rule


def test_an_id_is_never_built_from_a_path_that_could_not_be_parsed() -> None:
    for path in ("a", "/", "/a/", "/a//b", "/a/../b", "/é"):
        with pytest.raises(InvalidSpiffeID):
            SpiffeID(TrustDomain("example.org"), path)


def test_ids_of_trust_domains_with_empty_labels_are_read_and_marked() -> None:
    assert SpiffeID.parse("spiffe://a..b/c").trust_domain.has_empty_label
    assert not SpiffeID.parse("spiffe://a.b/c").trust_domain.has_empty_label


@given(ids)
def test_the_text_of_an_id_parses_to_the_same_id(spiffe_id: SpiffeID) -> None:
    assert SpiffeID.parse(str(spiffe_id)) == spiffe_id
    assert TrustDomain.parse(str(spiffe_id)) == spiffe_id.trust_domain
    assert spiffe_id.trust_domain.id.path == ""


@given(st.text() | st.text().map(SCHEME.__add__) | ids.flatmap(lambda each: st.text(max_size=3).map(str(each).__add__)))
@example("spiffe://example.org/a\n")
@example("spiffe://\udcff/a")
def test_any_text_is_kept_exactly_or_refused_with_a_message_that_can_be_logged(text: str) -> None:
    try:
        outcome = str(SpiffeID.parse(text))
    except InvalidSpiffeID as error:
        outcome = error.message
    assert outcome == text or (outcome.isascii() and outcome.isprintable())
