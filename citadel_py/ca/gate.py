"""The gate before the work: requests wait here for their turn, as core.admission decides. It decides nothing itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType

from citadel_py.core.admission import Admission, AdmissionLimits, Ask, Peer, Priority, Strangers, Ticket
from citadel_py.core.errors import Unavailable
from citadel_py.core.ports import Now
from citadel_py.obs.metrics import CAMetrics


class Gate:
    """One for all requests of a process, on one event loop."""

    def __init__(
        self,
        limits: AdmissionLimits,
        *,
        now: Now,
        metrics: CAMetrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admission = Admission(limits)
        self._strangers = Strangers(limits)
        self._now = now
        self._monotonic = monotonic
        self._metrics = metrics
        self._wait = {each: metrics.admission_wait.labels(each.name.lower()) for each in Priority}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        metrics.admission_waiting.set_function(lambda: self._admission.waiting)
        metrics.admission_in_works.set_function(lambda: self._admission.in_works)

    def check_stranger(self, peer: Peer, now: datetime) -> None:
        """Raise LimitReached where too many calls from there could not be authenticated."""
        try:
            self._strangers.check(peer, now)
        except Unavailable as error:
            self._refused(error)
            raise

    def failed(self, peer: Peer, now: datetime) -> None:
        """A call from there could not be authenticated."""
        self._strangers.failed(peer, now)

    def one(self, ask: Ask) -> _Passage:
        """A block that does one request's work when it is its turn.

        Entering raises LimitReached or Unavailable where it does not come to that. What ends in
        Unavailable is not the caller's fault, and does not count against it.
        """
        return _Passage(self, ask)

    def join(self, ask: Ask) -> Ticket:
        """Let a request in; it is to `leave` whatever comes. Raises LimitReached or Unavailable."""
        try:
            return self._admission.join(ask, self._now())
        except Unavailable as error:
            self._refused(error)
            raise

    async def turn_of(self, ticket: Ticket) -> None:
        """Return when it is its turn. Raises Unavailable where it does not come to that."""
        started = self._monotonic()
        self._look()
        if not ticket.is_in_works:
            await self._wait_for(ticket)
        self._wait[ticket.ask.priority].observe(self._monotonic() - started)

    def leave(self, ticket: Ticket, error: BaseException | None) -> None:
        """A request has ended, in an error if there is one."""
        self._admission.leave(ticket, counts=ticket.is_in_works and not isinstance(error, Unavailable))
        if self._admission.waiting:
            self._look()

    async def _wait_for(self, ticket: Ticket) -> None:
        if ticket.refusal is not None:
            raise ticket.refusal
        turn = self._waiting[ticket.number] = asyncio.get_running_loop().create_future()
        try:
            await turn
        finally:
            del self._waiting[ticket.number]

    def _look(self) -> None:
        """Let all go on whose turn it is, and those who wait in vain."""
        now = self._now()
        while True:
            turn = self._admission.turn(now)
            for ticket in turn.refused:
                self._settle(ticket, ticket.refusal)
            if turn.admitted is None:
                break
            self._settle(turn.admitted, None)
        if turn.again_in_s is not None and self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(turn.again_in_s, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        self._look()

    def _settle(self, ticket: Ticket, refusal: Unavailable | None) -> None:
        if refusal is not None:
            self._refused(refusal)
        turn = self._waiting.get(ticket.number)
        if turn is None or turn.done():  # it has just come and sees for itself, or has gone away and leaves
            return
        if refusal is None:
            turn.set_result(None)
        else:
            turn.set_exception(refusal)

    def _refused(self, error: Unavailable) -> None:
        self._metrics.admission_refusals.labels(error.rule).inc()


class _Passage:
    """One request on its way through the gate; a class, as a generator would cost each request three times as much."""

    __slots__ = ("_ask", "_gate", "_ticket")

    def __init__(self, gate: Gate, ask: Ask) -> None:
        self._gate = gate
        self._ask = ask

    async def __aenter__(self) -> None:
        self._ticket = self._gate.join(self._ask)
        try:
            await self._gate.turn_of(self._ticket)
        except BaseException as error:
            self._gate.leave(self._ticket, error)
            raise

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._gate.leave(self._ticket, error)
