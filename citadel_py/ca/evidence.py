"""Who trusts what: what agents report of their proxies, as evidence with a time. In memory, and bounded.

It belongs to this process: a report counts for the caller whose stream it came on, and what a proxy
calls itself proves nothing. Nothing is decided here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias

from citadel_py.core.errors import LimitReached
from citadel_py.core.trust import ProxyReport, TrustVersion

_FORGET_EVERY: Final = timedelta(seconds=30)  # at most: after a restart thousands of streams begin at once

_Agent: TypeAlias = tuple[str, str]  # the caller, and what its agent calls itself
_Proxy: TypeAlias = tuple[str, str]  # what the proxy calls itself, and the name of the secret


@dataclass(frozen=True, slots=True)
class EvidenceLimits:
    """Bounds of the table. What is gone is kept for `keep`: a proxy may run on while its agent is away."""

    of_one_agent: int = 4096
    overall: int = 65_536
    keep: timedelta = timedelta(hours=1)


class State(StrEnum):
    """Of a proxy and one secret, beside what is served now."""

    CURRENT = "current"
    BEHIND = "behind"
    REJECTED = "rejected"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The last report of one proxy about one secret; the agent's own has neither name."""

    caller: str
    agent: str
    report: ProxyReport
    time: datetime
    gone_at: datetime | None = None

    def state(self, served: TrustVersion) -> State:
        """How it stands beside what is served."""
        if self.gone_at is not None:
            return State.GONE
        if self.report.rejected is not None:
            return State.REJECTED
        return State.CURRENT if self.report.acknowledged == served else State.BEHIND


class Feed:
    """The reports of one stream. It ends when the stream does, and its proxies are gone unless another one goes on."""

    def __init__(self, table: EvidenceTable, agent: _Agent) -> None:
        self._table = table
        self._agent = agent
        self._said: set[_Proxy] | None = set()

    def take(self, report: ProxyReport, now: datetime) -> None:
        """Keep a report in the place of the one before. Raises LimitReached."""
        if self._said is not None:
            self._said.add(report.key)
        self._table.put(self._agent, report, now)

    def is_complete(self, now: datetime) -> None:
        """All has been said: what earlier streams reported and this one did not is gone."""
        if self._said is not None:
            self._table.mark_gone(self._agent, now, but=self._said)
            self._said = None

    def end(self, now: datetime) -> None:
        """The stream has ended."""
        self._table.end(self, self._agent, now)


class EvidenceTable:
    """All of it. Used from one event loop."""

    def __init__(self, limits: EvidenceLimits | None = None) -> None:
        self._limits = limits or EvidenceLimits()
        self._agents: dict[_Agent, dict[_Proxy, Evidence]] = {}
        self._feeds: dict[_Agent, Feed] = {}
        self._count = 0
        self._forgot_at: datetime | None = None
        self.changes = 0  # grows with each change, so that what was computed from the table can be kept

    def __iter__(self) -> Iterator[Evidence]:
        return (each for proxies in self._agents.values() for each in proxies.values())

    def __len__(self) -> int:
        return self._count

    def feed(self, caller: str, agent: str, now: datetime) -> Feed:
        """For a stream that begins; it takes the place of an older one of the same agent."""
        if self._forgot_at is None or not timedelta(0) <= now - self._forgot_at < _FORGET_EVERY:
            self._forget(now)
        key = caller, agent
        feed = self._feeds[key] = Feed(self, key)
        return feed

    def lacking(self, sequence: int) -> list[Evidence]:
        """Who has not acknowledged this sequence of the bundle, nor a later one; those that are gone too."""
        return [each for each in self if not _has(each.report, sequence)]

    def count(self, served: TrustVersion) -> Counter[State]:
        """How many are in each state."""
        return Counter(each.state(served) for each in self)

    def oldest_sequence(self) -> int | None:
        """The lowest sequence that anybody who is here acknowledged last; 0 where one has acknowledged none."""
        return min((_sequence(each.report) for each in self if each.gone_at is None), default=None)

    def put(self, agent: _Agent, report: ProxyReport, now: datetime) -> None:
        """For feeds."""
        proxies = self._agents.setdefault(agent, {})
        if report.key not in proxies:
            self._make_room(proxies, agent)
            self._count += 1
        caller, name = agent
        proxies[report.key] = Evidence(caller, name, report, now, None if report.streams else now)
        self.changes += 1

    def mark_gone(self, agent: _Agent, now: datetime, *, but: frozenset[_Proxy] | set[_Proxy] = frozenset()) -> None:
        """For feeds."""
        proxies = self._agents.get(agent, {})
        for key, each in proxies.items():
            if key not in but and each.gone_at is None:
                proxies[key] = replace(each, gone_at=now)
        self.changes += 1

    def end(self, feed: Feed, agent: _Agent, now: datetime) -> None:
        """For feeds."""
        if self._feeds.get(agent) is feed:
            del self._feeds[agent]
            self.mark_gone(agent, now)

    def _make_room(self, proxies: dict[_Proxy, Evidence], agent: _Agent) -> None:
        if len(proxies) >= self._limits.of_one_agent:
            raise LimitReached(
                f"the agent {agent[1]!a} of {agent[0]} reports more than {self._limits.of_one_agent} proxies",
                rule="too_many_proxies",
            )
        if self._count >= self._limits.overall:
            raise LimitReached(
                f"reports of {self._limits.overall} proxies are kept already", rule="too_many_proxies_overall"
            )

    def _forget(self, now: datetime) -> None:
        """What has been gone for long enough. It costs what the table is long."""
        self._forgot_at = now
        oldest = now - self._limits.keep
        for agent, proxies in list(self._agents.items()):
            for key in [key for key, each in proxies.items() if each.gone_at is not None and each.gone_at < oldest]:
                del proxies[key]
                self._count -= 1
            if not proxies and agent not in self._feeds:
                del self._agents[agent]
        self.changes += 1


def _has(report: ProxyReport, sequence: int) -> bool:
    return report.acknowledged is not None and report.acknowledged.sequence >= sequence


def _sequence(report: ProxyReport) -> int:
    return report.acknowledged.sequence if report.acknowledged else 0
