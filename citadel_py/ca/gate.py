"""The gate before the work: requests wait here for their turn, as core.admission decides. It decides nothing itself."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import lru_cache
from urllib.parse import unquote

from citadel_py.core.admission import Admission, AdmissionLimits, Ask, Peer, Priority, Strangers, Ticket
from citadel_py.core.errors import Unavailable
from citadel_py.core.ports import Now
from citadel_py.obs.metrics import CAMetrics

_IPV6_CUSTOMER_BITS = 64  # below that it is one network, and one customer


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

    @asynccontextmanager
    async def one(self, ask: Ask) -> AsyncIterator[None]:
        """Do one request's work when it is its turn.

        Raises LimitReached or Unavailable where it does not come to that. What ends in Unavailable is
        not the caller's fault, and does not count against it.
        """
        started = self._monotonic()
        try:
            ticket = self._admission.join(ask, self._now())
        except Unavailable as error:
            self._refused(error)
            raise
        counts = True
        try:
            await self._turn_of(ticket)
            self._wait[ask.priority].observe(self._monotonic() - started)
            yield
        except Unavailable:
            counts = False
            raise
        finally:
            self._admission.leave(ticket, counts=counts and ticket.is_in_works)
            self._look()

    async def _turn_of(self, ticket: Ticket) -> None:
        self._look()
        if ticket.is_in_works:
            return
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


@lru_cache(maxsize=4096)
def peer_of(text: str) -> Peer:
    """What gRPC calls a peer: `ipv4:192.0.2.1:4242`, `ipv6:%5B2001:db8::1%5D:4242`.

    Its address is the host, of IPv6 the network of 64 bits that a customer has.
    """
    host = unquote(text).partition(":")[2].rpartition(":")[0].strip("[]")
    if ":" not in host:
        return Peer(text, host or text)
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return Peer(text, host)
    if address.ipv4_mapped:
        return Peer(text, str(address.ipv4_mapped))
    return Peer(text, str(ipaddress.IPv6Network((int(address), _IPV6_CUSTOMER_BITS), strict=False)))
