"""Patterns match whole segments, and nothing that only looks alike."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.errors import InvalidConfiguration, InvalidSpiffeID
from citadel_py.core.patterns import (
    IDPattern,
    Segments,
    parse_dns_pattern,
    parse_id_pattern,
    parse_subject_pattern,
    segments_of,
)
from citadel_py.core.spiffe import SpiffeID

SEGMENT = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
PATH = st.lists(SEGMENT, min_size=1, max_size=6)
NAMES = st.sampled_from(["ns", "sa", "x_1"])


@st.composite
def patterns(draw: st.DrawFn) -> IDPattern:
    """A pattern with each capture at most once, and `**` at the end now and then."""
    parts = draw(st.lists(SEGMENT | st.just("*") | NAMES.map("{{{}}}".format), min_size=1, max_size=5))
    seen: set[str] = set()
    kept = [part for part in parts if not part.startswith("{") or not (part in seen or seen.add(part))]  # type: ignore[func-returns-value]  # remembers
    return parse_id_pattern("spiffe://example.org/" + "/".join([*kept, *draw(st.sampled_from([[], ["**"]]))]))


def matches(pattern: str, id: str) -> bool:
    """Whether an ID that can exist at all matches."""
    spiffe_id, read = SpiffeID.parse(id), parse_id_pattern(pattern)
    return read.trust_domain == spiffe_id.trust_domain and read.path.fits(segments_of(spiffe_id))


@pytest.mark.parametrize(
    ("pattern", "id"),
    [
        ("spiffe://td/web", "spiffe://td/web"),
        ("spiffe://td/ns/*/sa/*", "spiffe://td/ns/a/sa/c"),
        ("spiffe://td/ns/*/sa/*", "spiffe://td/ns/ns/sa/sa"),
        ("spiffe://td/*", "spiffe://td/..."),
        ("spiffe://td/ns/**", "spiffe://td/ns/a"),
        ("spiffe://td/ns/**", "spiffe://td/ns/a/sa/b"),
        ("spiffe://td/**", "spiffe://td/a"),
        ("spiffe://td/*/**", "spiffe://td/a/b"),
        ("spiffe://td/{ns}/{sa}", "spiffe://td/a/a"),
    ],
)
def test_what_is_meant_matches(pattern: str, id: str) -> None:
    assert matches(pattern, id)


@pytest.mark.parametrize(
    ("pattern", "id"),
    [
        ("spiffe://td/ns/*/sa/*", "spiffe://td/ns/a/b/sa/c"),
        ("spiffe://td/ns/*/sa/*", "spiffe://td/ns/a/sa/b/c"),
        ("spiffe://td/ns/*/sa/*", "spiffe://td/ns/a/sa"),
        ("spiffe://td/ns/*/sa/*", "spiffe://td/x/ns/a/sa/b"),
        ("spiffe://td/ns/shop", "spiffe://td/ns/shop2"),
        ("spiffe://td/ns/shop", "spiffe://td/ns/Shop"),
        ("spiffe://td/NS/shop", "spiffe://td/ns/shop"),
        ("spiffe://td/ns/shop", "spiffe://td/ns/shop/"[:-1] + "/sa"),
        ("spiffe://td/ns/**", "spiffe://td/ns"),
        ("spiffe://td/ns/shop/**", "spiffe://td/ns/shop-evil/sa/x"),
        ("spiffe://td/ns/*/**", "spiffe://td/ns/a"),
        ("spiffe://td/a.b", "spiffe://td/axb"),
        ("spiffe://td/a-z", "spiffe://td/b"),
        ("spiffe://td/**", "spiffe://td"),
        ("spiffe://td/**", "spiffe://td2/a"),
        ("spiffe://td/**", "spiffe://td.evil/a"),
        ("spiffe://td/**", "spiffe://sub.td/a"),
        ("spiffe://td/web", "spiffe://td/web/web"),
    ],
)
def test_what_looks_alike_does_not_match(pattern: str, id: str) -> None:
    assert not matches(pattern, id)


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("", "policy_pattern"),
        ("*", "policy_pattern"),
        ("/ns/*/sa/*", "policy_pattern"),
        ("SPIFFE://td/a", "policy_pattern"),
        ("https://td/a", "policy_pattern"),
        ("spiffe://td", "policy_pattern"),
        ("spiffe://td/", "policy_pattern"),
        ("spiffe://td//a", "policy_pattern"),
        ("spiffe://td/a/", "policy_pattern"),
        ("spiffe://td/./a", "policy_pattern"),
        ("spiffe://td/../a", "policy_pattern"),
        ("spiffe://td/a*", "policy_pattern"),
        ("spiffe://td/*a", "policy_pattern"),
        ("spiffe://td/***", "policy_pattern"),
        ("spiffe://td/**/a", "policy_pattern"),
        ("spiffe://td/**/**", "policy_pattern"),
        ("spiffe://td/{}", "policy_pattern"),
        ("spiffe://td/{Ns}", "policy_pattern"),
        ("spiffe://td/{ns", "policy_pattern"),
        ("spiffe://td/ns}", "policy_pattern"),
        ("spiffe://td/{ns}{sa}", "policy_pattern"),
        ("spiffe://td/x-{ns}", "policy_pattern"),
        ("spiffe://td/{ns}/{ns}", "policy_pattern"),
        ("spiffe://td/[a-z]", "policy_pattern"),
        ("spiffe://td/a?b", "policy_pattern"),
        ("spiffe://td/a%2fb", "policy_pattern"),
        ("spiffe://td/a b", "policy_pattern"),
        ("spiffe://td/a\n", "policy_pattern"),
        ("spiffe://td/\N{CYRILLIC SMALL LETTER A}", "policy_pattern"),
        ("spiffe://td/a\N{FULLWIDTH SOLIDUS}b", "policy_pattern"),
        ("spiffe://td/" + "a/" * 2048 + "a", "policy_pattern"),
        ("spiffe://*/a", "policy_trust_domain"),
        ("spiffe://*.td/a", "policy_trust_domain"),
        ("spiffe://**", "policy_trust_domain"),
        ("spiffe://{td}/a", "policy_trust_domain"),
        ("spiffe:///a", "policy_trust_domain"),
        ("spiffe://TD/a", "policy_trust_domain"),
        ("spiffe://td:443/a", "policy_trust_domain"),
        ("spiffe://u@td/a", "policy_trust_domain"),
    ],
)
def test_a_pattern_that_could_mean_something_else_is_refused(pattern: str, rule: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        parse_id_pattern(pattern)
    assert caught.value.rule == rule


@pytest.mark.parametrize("pattern", ["web.shop.svc", "*.example.org", "{sa}.{ns}", "*.{ns}.svc", "a-1.org"])
def test_a_dns_pattern_may_have_wildcards_and_captures_as_labels(pattern: str) -> None:
    assert str(parse_dns_pattern(pattern)) == pattern


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "a.*", "**", "a.**", "a*.org", "*-a.org", "{a}-{b}.org", "A.org", "a_b.org", "a..org", ".org", "org.",
     "-.org", "10.0.0.1", "*.1", "\N{LATIN SMALL LETTER E WITH ACUTE}.org", "a.org/"],
)  # fmt: skip
def test_a_dns_pattern_that_is_too_wide_or_no_host_name_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        parse_dns_pattern(pattern)
    assert caught.value.rule == "policy_pattern"


@pytest.mark.parametrize(
    ("pattern", "subject", "is_match"),
    [
        ("system:serviceaccount:*:web", "system:serviceaccount:shop:web", True),
        ("system:serviceaccount:*:web", "system:serviceaccount:shop:x:web", False),
        ("system:serviceaccount:*:web", "system:serviceaccount::web", False),
        ("system:**", "system:node:one", True),
        ("system:**", "system:", False),
        ("system:**", "system", False),
        ("repo:org/app:ref:*", "repo:org/app:ref:refs/heads/main", True),
        ("repo:org/*:ref:*", None, False),
    ],
)
def test_a_subject_has_its_segments_between_colons(pattern: str, subject: str | None, *, is_match: bool) -> None:
    if subject is None:
        with pytest.raises(InvalidConfiguration):
            parse_subject_pattern(pattern)
    else:
        assert parse_subject_pattern(pattern).fits(subject.split(":")) is is_match


@given(patterns(), PATH)
def test_matching_agrees_with_a_regular_expression(pattern: IDPattern, path: list[str]) -> None:
    parts = ["[^/]+" if part[0] in "*{" else re.escape(part) for part in pattern.path.parts]
    if pattern.path.is_open:
        parts[-1] = ".+"
    assert pattern.path.fits(path) == bool(re.fullmatch("/".join(parts), "/".join(path), re.DOTALL))


@given(patterns())
def test_a_pattern_reads_as_it_is_written(pattern: IDPattern) -> None:
    assert parse_id_pattern(str(pattern)) == pattern


@given(patterns(), PATH)
def test_a_capture_is_one_segment_of_what_matched(pattern: IDPattern, path: list[str]) -> None:
    if pattern.path.fits(path):
        caught = pattern.path.catch(path)
        assert set(caught) == pattern.path.names
        assert all(value in path and "/" not in value for value in caught.values())


@given(st.text(max_size=12), st.text(max_size=12))
def test_whatever_was_caught_stands_for_one_label_and_no_more(caught: str, name: str) -> None:
    """Nothing is pasted: a dot in a service account's name gives no label below another domain."""
    pattern = parse_dns_pattern("{sa}.shop.svc")
    labels = f"{name}.shop.svc".split(".")
    is_admitted = pattern.admits(labels, {"sa": caught})
    assert is_admitted == (name == caught and "." not in name and name != "")


def test_a_capture_that_nothing_caught_matches_nothing() -> None:
    assert not parse_dns_pattern("{sa}.svc").admits(["web", "svc"], {})


@given(patterns(), patterns(), PATH)
def test_a_pattern_that_covers_another_matches_all_that_it_does(
    wide: IDPattern, narrow: IDPattern, path: list[str]
) -> None:
    if wide.path.covers(narrow.path) and narrow.path.fits(path):
        assert wide.path.fits(path)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("**", "a/b", True), ("**", "*", True), ("**", "**", True), ("a/**", "a/*", True), ("a/**", "a/b/**", True),
        ("a/*", "a/**", False), ("*", "a/b", False), ("a/*", "*/a", False), ("a/**", "a", False), ("a", "*", False),
        ("{x}/a", "b/a", True), ("*/**", "**", False), ("a/*/**", "a/**", False),
    ],
)  # fmt: skip
def test_covering_is_known_for_patterns(wide: str, narrow: str, *, covers: bool) -> None:
    assert Segments(tuple(wide.split("/")), "/").covers(Segments(tuple(narrow.split("/")), "/")) is covers


def test_bound_captures_cover_only_themselves() -> None:
    one, other = Segments(("ns", "{ns}"), "/"), Segments(("ns", "shop"), "/")
    assert one.covers(one, are_bound=True)
    assert not one.covers(other, are_bound=True)


@given(st.text(max_size=30))
def test_what_is_no_pattern_is_always_told_as_bad_configuration(text: str) -> None:
    for parse in (parse_id_pattern, parse_dns_pattern, parse_subject_pattern):
        with contextlib.suppress(InvalidConfiguration):
            assert ":" in str(parse(text)) or parse is not parse_id_pattern


@given(patterns(), st.text(alphabet="ab/.*{}-:", max_size=12))
def test_only_what_is_a_spiffe_id_can_match(pattern: IDPattern, path: str) -> None:
    """No path with an empty, `.` or `..` segment ever reaches a pattern: the ID is parsed before."""
    try:
        spiffe_id = SpiffeID.parse(f"spiffe://example.org/{path}")
    except InvalidSpiffeID:
        return
    if pattern.path.fits(segments_of(spiffe_id)):
        assert "" not in path.split("/")
