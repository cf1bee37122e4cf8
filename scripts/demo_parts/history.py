"""What a run has seen, and the verdict on it. Values only: nothing here waits, asks or prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from demo_parts.wire import Leaf, Side

_SHOWN_SERIALS = 6


@dataclass
class ProxyHistory:
    """One proxy: the certificates that it presented, in order, and what its agent plans."""

    leaves: list[Leaf] = field(default_factory=list)
    renew_at: datetime | None = None
    tries_in_vain: int = 0
    is_waiting: bool = False  # for a CA that is away

    @property
    def renewals(self) -> int:
        """How often a new certificate was seen on the wire."""
        return max(0, len(self.leaves) - 1)

    def saw(self, leaf: Leaf) -> Leaf | None:
        """Note it; the one before it where it is new and not the first."""
        if leaf in self.leaves:
            return None
        self.leaves.append(leaf)
        self.is_waiting = False
        return self.leaves[-2] if self.renewals else None


@dataclass(frozen=True)
class Event:
    """Something worth a line, `at_s` seconds after the load began."""

    at_s: float
    text: str


@dataclass
class History:
    """All that was seen; `at_s` arguments count from the start of the load."""

    proxies: dict[Side, ProxyHistory] = field(default_factory=lambda: {side: ProxyHistory() for side in Side})
    is_ca_up: bool = True
    events: list[Event] = field(default_factory=list)

    def saw(self, side: Side, leaf: Leaf, *, at_s: float) -> None:
        """A handshake in which this side presented this leaf."""
        if before := self.proxies[side].saw(leaf):
            self.note(f"{side} renewed: {before.short} -> {leaf.short}", at_s=at_s)

    def agent_told(self, side: Side, *, renew_at: datetime | None, tries_in_vain: int, at_s: float) -> None:
        """The agent's own plan, and how many of its attempts found no CA."""
        proxy = self.proxies[side]
        if tries_in_vain > proxy.tries_in_vain and not (proxy.is_waiting or self.is_ca_up):
            proxy.is_waiting = True
            self.note(f"{side} cannot renew while the CA is away: keeps its certificate and tries again", at_s=at_s)
        proxy.renew_at, proxy.tries_in_vain = renew_at, tries_in_vain

    def ca_is(self, *, up: bool, at_s: float) -> None:
        """Whether the CA answers."""
        if up != self.is_ca_up:
            self.note("the CA answers again" if up else "the CA does not answer", at_s=at_s)
        self.is_ca_up = up

    def ca_was_killed(self, *, at_s: float) -> None:
        """On purpose, so that nobody needs to be told that it does not answer."""
        self.note("the CA is killed (SIGKILL), shortly before a renewal", at_s=at_s)
        self.is_ca_up = False

    def note(self, text: str, *, at_s: float) -> None:
        self.events.append(Event(at_s, text))

    def next_renewal(self) -> datetime | None:
        """The moment of the first renewal to come."""
        return min((proxy.renew_at for proxy in self.proxies.values() if proxy.renew_at), default=None)


@dataclass(frozen=True)
class Outcome:
    """The counts at the end of a run, and what is to be thought of them."""

    seconds: float
    requests: int
    failures: int
    first_failure: str
    slowest_s: float
    handshakes: int
    history: History
    is_outage_missing: bool = False

    def complaints(self) -> Iterator[str]:
        """Why the run has not shown what it is for; nothing where it has."""
        if self.failures:
            yield f"{count(self.failures, 'request')} failed, the first: {self.first_failure}"
        if not self.requests:
            yield "no request was made"
        if self.handshakes < self.requests:
            yield f"only {count(self.handshakes, 'full handshake')} for {count(self.requests, 'request')}"
        for side, proxy in self.history.proxies.items():
            if not proxy.renewals:
                yield f"no renewal of the {side} was seen"
        if self.is_outage_missing:
            yield "the run ended before the CA was killed and came back"

    def lines(self) -> Iterator[str]:
        """The summary."""
        yield (
            f"{self.seconds:.0f} s: {count(self.requests, 'request')}, {self.failures} failed, "
            f"{count(self.handshakes, 'full mTLS handshake')}, slowest answer {self.slowest_s * 1000:.0f} ms"
        )
        for side, proxy in self.history.proxies.items():
            yield f"{side}: {count(proxy.renewals, 'renewal')} seen on the wire: {_last_serials(proxy)}"
        complaints = list(self.complaints())
        yield from (f"not shown: {complaint}" for complaint in complaints)
        if not complaints:
            yield "passed: no request failed, and both proxies renewed under load"


def _last_serials(proxy: ProxyHistory) -> str:
    start = "... -> " if len(proxy.leaves) > _SHOWN_SERIALS else ""
    return start + " -> ".join(leaf.short for leaf in proxy.leaves[-_SHOWN_SERIALS:])


def count(number: int, noun: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
