"""Who trusts what, as it was reported: attributed, bounded, and kept for a while after it has gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.ca.evidence import EvidenceLimits, EvidenceTable, State
from citadel_py.core.errors import LimitReached
from citadel_py.core.trust import ProxyReport, TrustVersion

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
HOUR = timedelta(hours=1)
OLD, NEW = TrustVersion(1, "01" * 32), TrustVersion(2, "02" * 32)


def report(proxy: str = "one", *, acknowledged: TrustVersion | None = OLD, streams: int = 1) -> ProxyReport:
    return ProxyReport(proxy, "ROOTCA", acknowledged, streams=streams)


def names(table: EvidenceTable, sequence: int) -> list[str]:
    return sorted(each.report.proxy for each in table.lacking(sequence))


def test_those_lack_a_sequence_that_have_acknowledged_none_or_a_lower_one() -> None:
    table = EvidenceTable()
    feed = table.feed("caller", "agent", NOW)
    for name, version in (("new", NEW), ("old", OLD), ("none", None)):
        feed.take(report(name, acknowledged=version), NOW)

    assert names(table, 2) == ["none", "old"]
    assert names(table, 1) == ["none"]
    assert table.oldest_sequence() == 0


def test_the_newest_report_counts() -> None:
    table = EvidenceTable()
    feed = table.feed("caller", "agent", NOW)
    feed.take(report(), NOW)
    feed.take(report(acknowledged=NEW), NOW)

    assert len(table) == 1
    assert table.lacking(2) == []


@pytest.mark.parametrize(
    ("one", "state"),
    [
        (report(acknowledged=NEW), State.CURRENT),
        (report(), State.BEHIND),
        (report(acknowledged=None), State.BEHIND),
        (ProxyReport("one", "ROOTCA", OLD, rejected=NEW, reason="bad_certificate"), State.REJECTED),
        (report(acknowledged=NEW, streams=0), State.GONE),
    ],
    ids=str,
)
def test_a_proxy_is_in_one_state(one: ProxyReport, state: State) -> None:
    table = EvidenceTable()
    table.feed("caller", "agent", NOW).take(one, NOW)

    assert table.count(NEW) == {state: 1}


def test_two_callers_do_not_speak_for_each_other() -> None:
    table = EvidenceTable()
    table.feed("caller", "agent", NOW).take(report(), NOW)
    table.feed("other", "agent", NOW).take(report(acknowledged=NEW), NOW)

    assert [each.caller for each in table.lacking(2)] == ["caller"]


def test_what_an_agent_that_came_back_does_not_report_again_is_gone() -> None:
    table = EvidenceTable()
    first = table.feed("caller", "agent", NOW)
    first.take(report("one"), NOW)
    first.take(report("two"), NOW)
    first.end(NOW)
    assert table.count(NEW) == {State.GONE: 2}

    again = table.feed("caller", "agent", NOW)
    again.take(report("one"), NOW)
    again.is_complete(NOW)

    assert table.count(NEW) == {State.BEHIND: 1, State.GONE: 1}
    again.take(report("two"), NOW)
    again.is_complete(NOW)
    assert table.count(NEW) == {State.BEHIND: 2}


def test_a_stream_that_ends_after_its_successor_began_takes_nothing_with_it() -> None:
    table = EvidenceTable()
    first = table.feed("caller", "agent", NOW)
    second = table.feed("caller", "agent", NOW)
    second.take(report(), NOW)
    first.end(NOW)

    assert table.count(NEW) == {State.BEHIND: 1}
    second.end(NOW)
    assert table.count(NEW) == {State.GONE: 1}
    assert names(table, 2) == ["one"]  # it may run on


def test_what_is_gone_is_forgotten_after_a_while() -> None:
    table = EvidenceTable(EvidenceLimits(keep=HOUR))
    feed = table.feed("caller", "agent", NOW)
    feed.take(report(), NOW)
    feed.end(NOW)

    table.feed("other", "agent", NOW + HOUR)
    assert len(table) == 1
    table.feed("other", "agent", NOW + HOUR + timedelta(seconds=1))
    assert len(table) == 1  # it looks twice in a minute
    table.feed("other", "agent", NOW + HOUR + timedelta(seconds=30))
    assert len(table) == 0


def test_an_agent_cannot_fill_the_table_and_agents_together_cannot_either() -> None:
    table = EvidenceTable(EvidenceLimits(of_one_agent=2, overall=3))
    feed = table.feed("caller", "agent", NOW)
    feed.take(report("one"), NOW)
    feed.take(report("two"), NOW)
    with pytest.raises(LimitReached) as caught:
        feed.take(report("three"), NOW)
    assert caught.value.rule == "too_many_proxies"
    feed.take(report("two"), NOW)  # one that is known is no new one

    other = table.feed("caller", "other", NOW)
    other.take(report("three"), NOW)
    with pytest.raises(LimitReached) as caught:
        other.take(report("four"), NOW)
    assert caught.value.rule == "too_many_proxies_overall"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 3), st.integers(0, 7200))))
def test_the_count_is_that_of_the_entries(steps: list[tuple[str, str, int, int]]) -> None:
    table = EvidenceTable(EvidenceLimits(of_one_agent=2, overall=4, keep=HOUR))
    feeds = {name: table.feed("caller", name, NOW) for name in "abc"}
    for agent, proxy, what, after_s in steps:
        moment = NOW + timedelta(seconds=after_s)
        if what == 0:
            feeds[agent].end(moment)
            feeds[agent] = table.feed("caller", agent, moment)
        elif what == 1:
            feeds[agent].is_complete(moment)
        else:
            try:
                feeds[agent].take(report(proxy, streams=what - 2), moment)
            except LimitReached:
                assert len(table) >= 2

    assert len(table) == len(list(table)) <= 4
    assert sum(table.count(NEW).values()) == len(table)
