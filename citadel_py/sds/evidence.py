"""What proxies have taken, refused and not got, by what they say their names are: evidence, not authorization.

It is read from the state of the streams that are open when somebody asks, so that it costs a stream
nothing. Texts of refusals are not in it: they can hold keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Protocol, TypeAlias

from citadel_py.sds.listeners import Listeners

MAX_STATES: Final = 10_000
MAX_NAMES: Final = 64  # of one stream: an Envoy has one on each, or some on a stream of ADS
GRACE: Final = timedelta(seconds=30)  # an Envoy is back within seconds (its bootstrap says 5)

Clock: TypeAlias = Callable[[], float]  # seconds, monotonic


@dataclass(frozen=True, slots=True)
class ProxyState:
    """One resource of one proxy, over all its streams.

    `via` is where it is served, `node` what the proxy calls itself, `peer` the ID that it has proven
    (empty on a Unix socket). `acknowledged` is a version that all of its streams hold, else None;
    `rejected` is a current version that one of them refused; `withheld` says in words why there is
    nothing to send. `streams` is 0 for a proxy that has just gone.
    """

    via: str
    node: str
    peer: str
    resource: str
    acknowledged: str | None = None
    rejected: str | None = None
    withheld: str | None = None
    streams: int = 1

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.via, self.node, self.peer, self.resource


class Followed(Protocol):
    """A stream that can be asked what its client has now."""

    def states(self) -> Iterator[ProxyState]: ...


class Evidence:
    """The table. Streams are in it while they are open, and proxies for a short while after their last one."""

    def __init__(self, clock: Clock, *, grace: timedelta = GRACE, max_states: int = MAX_STATES) -> None:
        self._clock = clock
        self._grace_s = grace.total_seconds()
        self._max_states = max_states
        self._streams: set[Followed] = set()
        self._gone: dict[tuple[str, str, str, str], tuple[ProxyState, float]] = {}
        self._listeners = Listeners()
        self.listen = self._listeners.listen
        self.changed = self._listeners.wake
        self.omitted = 0

    def snapshot(self) -> tuple[ProxyState, ...]:
        """All states, in order. Beyond the bound some are left out, and `omitted` says how many."""
        self._forget_old()
        states = {key: replace(state, streams=0) for key, (state, _) in self._gone.items()}
        states |= merged(state for stream in self._streams for state in stream.states())
        self.omitted = max(len(states) - self._max_states, 0)
        return tuple(states[key] for key in sorted(states)[: self._max_states])

    @contextmanager
    def follow(self, stream: Followed) -> Iterator[None]:
        """Have the stream in the table for as long as the block, and what is known of its proxy a little longer."""
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)
            self._keep(stream)
            self.changed()

    def _keep(self, stream: Followed) -> None:
        self._forget_old()
        until = self._clock() + self._grace_s
        for state in stream.states():
            if len(self._gone) < self._max_states or state.key in self._gone:
                self._gone.pop(state.key, None)  # in the order in which they end
                self._gone[state.key] = state, until

    def _forget_old(self) -> None:
        now = self._clock()
        for key, (_, until) in list(self._gone.items()):
            if until > now:
                break
            del self._gone[key]


def merged(states: Iterable[ProxyState]) -> dict[tuple[str, str, str, str], ProxyState]:
    """One state per proxy and resource. Names are self-asserted: two proxies that share one are judged together."""
    found: dict[tuple[str, str, str, str], ProxyState] = {}
    for state in states:
        before = found.get(state.key)
        found[state.key] = _both(before, state) if before else state
    return found


def _both(one: ProxyState, other: ProxyState) -> ProxyState:
    return replace(
        one,
        acknowledged=one.acknowledged if one.acknowledged == other.acknowledged else None,
        rejected=one.rejected or other.rejected,
        withheld=one.withheld or other.withheld,
        streams=one.streams + other.streams,
    )


def document(evidence: Evidence) -> Mapping[str, Any]:
    """As JSON, for people: `/proxies` of the agent's admin listener."""
    names = ("via", "node", "peer", "resource", "acknowledged", "rejected", "withheld", "streams")
    proxies = [{name: getattr(state, name) for name in names} for state in evidence.snapshot()]
    return {"version": 1, "proxies": proxies, "omitted": evidence.omitted}
