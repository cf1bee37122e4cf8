"""Who is served next, who waits and who is told to come back: bounded work in every direction.

Values and the time come in, decisions go out; nothing here waits, signs or knows a network. Limits
of one caller are refused with LimitReached, a service that is full with Unavailable, and both say
when to come back.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum

from citadel_py.core.errors import LimitReached, Unavailable
from citadel_py.core.profile import Validity
from citadel_py.core.rates import Buckets, Elapsed, Rate

SHARE = 8  # of so many turns one goes to whoever waits longest, whatever its priority
LEAST_DELAY_S, MOST_DELAY_S = 1.0, 60.0  # of those who are told to come back
OVERALL = Rate(5000, timedelta(seconds=1))
CALLER = Rate(10_000, timedelta(seconds=20))
IDENTITY = Rate(5000, timedelta(hours=1))
CONNECTION_FAILURES = Rate(100, timedelta(seconds=10))
ADDRESS_FAILURES = Rate(1000, timedelta(seconds=10))
_LEAST_PACE = 50.0  # certificates per second that are counted on for their appointments


class Priority(IntEnum):
    """The smaller the sooner: nobody to talk to without, little time left, time enough.

    Before all of them comes the service's own probe: whoever floods the service shall not make it
    look broken too. There is one of them at a time, and no limit of a caller is for it.
    """

    PROBE = 0
    FIRST_ISSUE = 1
    NEAR_EXPIRY = 2
    EARLY_RENEWAL = 3


def priority_of(held: Validity | None, now: datetime) -> Priority:
    """By the certificate that the caller shows for the identity that it asks for; None where it shows none."""
    if held is None:
        return Priority.FIRST_ISSUE
    is_early = held.not_after - now > (held.not_after - held.not_before) / 2
    return Priority.EARLY_RENEWAL if is_early else Priority.NEAR_EXPIRY


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Bounds of one process.

    `overall` is a pace: beyond it requests wait. `caller` bounds all that one caller is given,
    `identity` what it is given for one identity from one address: many workloads may have one
    identity, so that it has to be generous. Failures to authenticate are counted for a connection
    and, more generously, for its address. At most `places` requests are signed or recorded at a
    time, at most `waiting` wait, and no longer than `patience`.
    """

    overall: Rate = OVERALL
    caller: Rate = CALLER
    identity: Rate = IDENTITY
    connection_failures: Rate = CONNECTION_FAILURES
    address_failures: Rate = ADDRESS_FAILURES
    places: int = 64
    waiting: int = 384
    patience: timedelta = timedelta(seconds=20)
    same_at_once: int = 64  # of one identity on one connection
    kept: int = 100_000  # keys of each kind that are remembered


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end: one connection, and the network address that it comes from."""

    connection: str
    address: str


class Strangers:
    """Callers that could not be authenticated: a few mistakes are free, then they are turned away unheard.

    A connection that fails again and again does not use up what its address may do, so that one
    broken client behind a shared address leaves room for its neighbours.
    """

    def __init__(self, limits: AdmissionLimits) -> None:
        self._connections = Buckets(limits.connection_failures, size=limits.kept)
        self._addresses = Buckets(limits.address_failures, size=limits.kept)
        self._elapsed = Elapsed()

    def check(self, peer: Peer, now: datetime) -> None:
        """Raise LimitReached, before any look at its credentials, where a caller failed too often."""
        at = self._elapsed.at(now)
        wait_s = self._connections.wait_s(peer.connection, at) or self._addresses.wait_s(peer.address, at)
        if wait_s:
            raise LimitReached(
                "too many calls from there could not be authenticated",
                rule="too_many_failures",
                retry_after=timedelta(seconds=max(wait_s, LEAST_DELAY_S)),
            )

    def failed(self, peer: Peer, now: datetime) -> None:
        """Count a call that could not be authenticated."""
        at = self._elapsed.at(now)
        self._connections.take(peer.connection, at)
        self._addresses.take(peer.address, at)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of an authenticated caller. `patience` is how long it can wait; None where it does not say.

    Limits count under the caller, never under an identity that somebody else merely names.
    """

    caller: str
    id: str
    peer: Peer
    priority: Priority
    patience: timedelta | None = None


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was let in: it waits, then it is in the works, then it has left."""

    number: int
    ask: Ask
    ends_at: float
    is_in_works: bool = False
    refusal: Unavailable | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What follows: one that may go to work, those that wait in vain, and when to look again (in seconds)."""

    admitted: Ticket | None = None
    refused: tuple[Ticket, ...] = ()
    again_in_s: float | None = None


NOTHING = Turn()


@dataclass(slots=True)
class _Appointments:
    """When those come back who found no place: one after the other, at the pace of the last second."""

    next: float = 0.0
    second: int = 0
    count: int = 0
    pace: float = _LEAST_PACE

    def one_was_served(self, at: float) -> None:
        if int(at) != self.second:
            self.pace = max(_LEAST_PACE, float(self.count) if int(at) == self.second + 1 else 0.0)
            self.second, self.count = int(at), 0
        self.count += 1

    def delay(self, at: float) -> timedelta:
        soonest = max(self.next, at + LEAST_DELAY_S) + 1 / self.pace
        self.next = min(soonest, at + MOST_DELAY_S)
        return timedelta(seconds=self.next - at)


@dataclass(slots=True)
class _Line:
    """Those who wait: by priority, and in order of arrival within one."""

    by_priority: tuple[OrderedDict[int, Ticket], ...] = field(
        default_factory=lambda: tuple(OrderedDict() for _ in Priority)
    )
    turns: int = 0
    count: int = 0
    callers: Counter[str] = field(default_factory=Counter)

    def add(self, ticket: Ticket) -> None:
        self.by_priority[ticket.ask.priority][ticket.number] = ticket
        self.count += 1
        self.callers[ticket.ask.caller] += 1

    def remove(self, ticket: Ticket) -> None:
        """Without effect where it does not wait."""
        if self.by_priority[ticket.ask.priority].pop(ticket.number, None):
            self._taken_out(ticket)

    def first(self) -> Ticket | None:
        """Takes out whose turn it is. Nobody starves: the oldest of all has every SHARE-th turn."""
        if not self.count:
            return None
        self.turns += 1
        lines = (line for line in self.by_priority if line)
        line = next(lines) if self.turns % SHARE else min(lines, key=lambda each: next(iter(each)))
        return self._taken_out(line.popitem(last=False)[1])

    def give_way(self, ask: Ask) -> Ticket | None:
        """Takes out the one that came last of those who matter less than `ask`.

        Where nobody does it is the last one of the caller that waits with most, if that is one more at
        least than the caller of `ask` would have: a caller with many connections does not fill the queue.
        """
        for line in reversed(self.by_priority[ask.priority + 1 :]):
            if line:
                return self._taken_out(line.popitem(last=True)[1])
        most = max(self.callers, key=self.callers.__getitem__, default=ask.caller)
        if self.callers[most] <= self.callers[ask.caller] + 1:
            return None
        lines = (reversed(line.values()) for line in reversed(self.by_priority))
        last = next(ticket for line in lines for ticket in line if ticket.ask.caller == most)
        self.remove(last)
        return last

    def expired(self, at: float) -> tuple[Ticket, ...]:
        """Takes out all whose time is over."""
        gone = tuple(ticket for line in self.by_priority for ticket in line.values() if at >= ticket.ends_at)
        for ticket in gone:
            self.remove(ticket)
        return gone

    def _taken_out(self, ticket: Ticket) -> Ticket:
        self.count -= 1
        self.callers[ticket.ask.caller] -= 1
        if not self.callers[ticket.ask.caller]:
            del self.callers[ticket.ask.caller]
        return ticket


class Admission:
    """Decides about requests: `join`, then `turn` until it admits nobody, and `leave` for each that joined."""

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        self._limits = limits or AdmissionLimits()
        self._overall = Buckets(self._limits.overall, size=1)
        self._callers = Buckets(self._limits.caller, size=self._limits.kept)
        self._identities = Buckets(self._limits.identity, size=self._limits.kept)
        self._elapsed = Elapsed()
        self._appointments = _Appointments()
        self._line = _Line()
        self._turned_away: list[Ticket] = []
        self._same: dict[tuple[str, str], int] = {}
        self._in_works = 0
        self._number = 0
        self._next_end = float("inf")  # nobody's time is over before

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._line.count

    @property
    def in_works(self) -> int:
        """How many were admitted and have not left."""
        return self._in_works

    def join(self, ask: Ask, now: datetime) -> Ticket:
        """Let a request in. Raises LimitReached for its caller's limits, Unavailable where there is no room.

        What is refused here counts for nothing, so that a client that loops uses up its own share and no more.
        """
        at = self._elapsed.at(now)
        if ask.priority is Priority.PROBE:
            self._make_room(ask, at)
            return self._let_in(ask, at)
        self._check_same(ask)
        identity = (ask.caller, ask.id, ask.peer.address)
        wait_s = self._identities.wait_s(identity, at) or self._callers.wait_s(ask.caller, at)
        if wait_s:
            raise _share_used_up(ask, wait_s)
        self._make_room(ask, at)
        self._identities.take(identity, at)
        self._callers.take(ask.caller, at)
        return self._let_in(ask, at)

    def turn(self, now: datetime) -> Turn:
        """Whose turn it is, if anybody's. To be asked again after each that is admitted."""
        again_in_s, admitted = 0.0, None
        if self._line.count and self._in_works < self._limits.places:
            at = self._elapsed.at(now)
            again_in_s = self._overall.wait_s(None, at)
            admitted = self._admit(at) if not again_in_s else None
        if not (admitted or again_in_s or self._turned_away):
            return NOTHING
        refused, self._turned_away = tuple(self._turned_away), []
        return Turn(admitted, refused, again_in_s or None)

    def leave(self, ticket: Ticket, *, counts: bool) -> None:
        """A request has ended, wherever it was. `counts` is whether the caller has had its share of work by it."""
        if ticket.is_in_works:
            self._in_works -= 1
        else:
            self._line.remove(ticket)
        ask = ticket.ask
        same = (ask.peer.connection, ask.id)
        self._same[same] -= 1
        if not self._same[same]:
            del self._same[same]
        if not counts:
            self._identities.give_back((ask.caller, ask.id, ask.peer.address))
            self._callers.give_back(ask.caller)

    def _admit(self, at: float) -> Ticket | None:
        self._drop_expired(at)
        ticket = self._line.first()
        if ticket:
            ticket.is_in_works = True
            self._in_works += 1
            self._overall.take(None, at)
            self._appointments.one_was_served(at)
        return ticket

    def _check_same(self, ask: Ask) -> None:
        if self._same.get((ask.peer.connection, ask.id), 0) >= self._limits.same_at_once:
            raise LimitReached(
                f"a certificate for {ask.id} is being made for this connection already",
                rule="duplicate_request",
                retry_after=timedelta(seconds=LEAST_DELAY_S),
            )

    def _make_room(self, ask: Ask, at: float) -> None:
        """Somebody less pressing, or with more than its share, makes room where there is none. Raises Unavailable."""
        if self._line.count < self._limits.waiting:
            return
        self._drop_expired(at)
        if self._line.count < self._limits.waiting:
            return
        displaced = self._line.give_way(ask)
        if displaced is None:
            raise self._full(at)
        displaced.refusal = self._full(at)
        self._turned_away.append(displaced)

    def _let_in(self, ask: Ask, at: float) -> Ticket:
        self._number += 1
        patience = self._limits.patience if ask.patience is None else min(ask.patience, self._limits.patience)
        ticket = Ticket(self._number, ask, at + patience.total_seconds())
        self._next_end = min(self._next_end, ticket.ends_at)
        same = (ask.peer.connection, ask.id)
        self._same[same] = self._same.get(same, 0) + 1
        self._line.add(ticket)
        return ticket

    def _drop_expired(self, at: float) -> None:
        if at < self._next_end:
            return
        for ticket in self._line.expired(at):
            ticket.refusal = Unavailable(
                "the time to wait was over before it was this request's turn",
                rule="waited_too_long",
                retry_after=self._appointments.delay(at),
            )
            self._turned_away.append(ticket)
        left = (ticket.ends_at for line in self._line.by_priority for ticket in line.values())
        self._next_end = min(left, default=float("inf"))

    def _full(self, at: float) -> Unavailable:
        return Unavailable(
            f"{self.waiting} requests wait already", rule="queue_full", retry_after=self._appointments.delay(at)
        )


def _share_used_up(ask: Ask, wait_s: float) -> LimitReached:
    return LimitReached(
        f"{ask.caller} has asked for too many certificates in a short time",
        rule="too_many_certificates",
        hint="renew a certificate when half of its life is over, not before; limits are settings of the service",
        retry_after=timedelta(seconds=max(wait_s, LEAST_DELAY_S)),
    )
