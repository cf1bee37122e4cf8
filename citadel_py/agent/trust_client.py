"""One stream to the CA that lasts: what to trust comes down, what proxies made of it goes up.

A CA that is away takes nothing: what is held goes on, and the stream is opened again. What may be
believed of what comes is decided in trust_state.py.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import islice
from typing import Any, Final, Protocol, TypeAlias

import grpc

from citadel_py import __version__
from citadel_py._proto.citadel.v1 import trust_pb2, trust_pb2_grpc
from citadel_py.agent.ca_call import MAX_REPLY_BYTES, Door, error_of
from citadel_py.agent.trust_messages import read_hint, read_trust, read_version, report_messages
from citadel_py.agent.trust_state import Taken, TrustState
from citadel_py.core.errors import CitadelError
from citadel_py.core.ports import Now, Uniform
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.trust import ProxyReport, RenewalHint, Trust
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.status import read_refusal

MAX_PROXIES: Final = 4000  # that are reported; the CA keeps a few more of one agent
JUDGE_EVERY: Final = timedelta(seconds=5)
_NOT_YET: Final = timedelta(milliseconds=250)
_FIRST_PAUSE: Final = timedelta(seconds=1)  # at most; after a CA has ended its streams all its agents come back
_LONGEST_PAUSE: Final = timedelta(seconds=30)
_UNKNOWN_THERE: Final = timedelta(minutes=10)  # an older CA may be replaced by a newer one
_GATHER: Final = timedelta(milliseconds=20)  # at least, after reports went out: the next go out together

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.enable_http_proxy", 0),  # a CA is inside
    ("grpc.use_local_subchannel_pool", 1),  # a new stream shall try, not report an old failure
    ("grpc.keepalive_time_ms", 20_000),  # finds a CA that vanished without a word; it allows one in 10 s
    ("grpc.keepalive_timeout_ms", 5_000),
)

Call: TypeAlias = "grpc.aio.StreamStreamCall[trust_pb2.TrustReports, trust_pb2.TrustNews]"

_log = get_logger()


class FindDoor(Protocol):
    """Tells where to call; where the last call failed what it knows `is_doubtful`."""

    async def __call__(self, *, is_doubtful: bool) -> Door | None:
        """None while there is no certificate to show yet. Raises CitadelError where it cannot be told."""
        ...


class TrustClient:
    """`run` it until cancelled.

    `held` is what was kept from before. `keep` makes a trust durable and runs in a thread; where it
    fails the trust is served all the same. `on_trust` is called with each new one and `on_hint` with
    each new wish, both on the event loop. `reports` are those of all proxies at a moment: call
    `reports_changed` when they have.
    """

    def __init__(
        self,
        trust_domain: TrustDomain,
        *,
        name: str,
        door: FindDoor,
        held: Trust | None,
        keep: Callable[[Trust], None],
        on_trust: Callable[[Trust], Any],
        on_hint: Callable[[RenewalHint], Any],
        reports: Callable[[], Iterable[ProxyReport]],
        now: Now,
        uniform: Uniform,
        metrics: AgentMetrics,
    ) -> None:
        self._trust_domain = trust_domain
        self._name = name
        self._door = door
        self._keep = keep
        self._on_trust = on_trust
        self._on_hint = on_hint
        self._reports = reports
        self._now = now
        self._uniform = uniform
        self._metrics = metrics
        self._state = TrustState(held)
        self._has_reports = asyncio.Event()
        self._failures = 0
        self.is_connected = False
        metrics.trust_sequence.set_function(self._sequence)

    @property
    def problem(self) -> str | None:
        """What is wrong with what the CA sends, in words; that it is away is told by others."""
        refused = self._state.refused
        return f"news of the CA were refused: {refused.message}" if refused else None

    def reports_changed(self) -> None:
        """There is something new to report."""
        self._has_reports.set()

    async def run(self) -> None:
        """Follow the CA until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_judging())
            while True:
                pause = await self._follow_once()
                await asyncio.sleep(pause.total_seconds())

    async def judge(self) -> None:
        """Take revocation lists back before they end. `run` does it by itself."""
        await self._act(self._state.judge(self._now()))

    async def _keep_judging(self) -> None:
        while True:
            await asyncio.sleep(JUDGE_EVERY.total_seconds())
            await self.judge()

    async def _follow_once(self) -> timedelta:
        """One stream from its beginning to its end; how long to wait for the next one."""
        try:
            door = await self._door(is_doubtful=self._failures > 0)
            if door is None:
                return _NOT_YET
            await self._follow(door)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                _log.debug(events.TRUST_DISCONNECTED, error="this CA has no trust stream")
                return _UNKNOWN_THERE * (0.5 + self._uniform())
            self._failed(error_of(read_refusal(error)))
        except CitadelError as error:
            self._failed(error)
        longest = min(_FIRST_PAUSE * (1 << min(self._failures, 10)), _LONGEST_PAUSE)
        return longest * (0.1 + 0.9 * self._uniform())

    def _failed(self, error: CitadelError) -> None:
        """Told once for a row of failures: renewal tells in detail that the CA is away."""
        self._failures += 1
        tell = _log.warning if self._failures == 1 else _log.debug
        tell(events.TRUST_DISCONNECTED, rule=error.rule, error=error.message)

    async def _follow(self, door: Door) -> None:
        """Returns where the CA ends the stream in order. Raises AioRpcError."""
        credentials = grpc.ssl_channel_credentials(door.roots, door.key, door.chain)
        async with grpc.aio.secure_channel(door.address, credentials, _OPTIONS) as channel:
            call: Call = trust_pb2_grpc.TrustServiceStub(channel).Follow()
            reading = asyncio.create_task(self._read(call, door))
            reporting = asyncio.create_task(self._report(call))
            try:
                await asyncio.wait((reading, reporting), return_when=asyncio.FIRST_COMPLETED)
                if reporting.done():
                    reporting.result()
                await reading
            finally:
                self._become_connected(is_connected=False)
                for task in (reading, reporting):
                    task.cancel()
                call.cancel()
                await asyncio.gather(reading, reporting, return_exceptions=True)  # they have told what is wrong

    async def _read(self, call: Call, door: Door) -> None:
        is_first = True
        async for news in call:
            if is_first:
                self._failures, is_first = 0, False
                self._become_connected(is_connected=True)
                _log.info(events.TRUST_CONNECTED, address=door.address)
            await self._take(news)

    def _become_connected(self, *, is_connected: bool) -> None:
        self.is_connected = is_connected
        self._metrics.trust_connected.set(int(is_connected))

    async def _take(self, news: trust_pb2.TrustNews) -> None:
        try:
            trust = await asyncio.to_thread(read_trust, news.trust, self._trust_domain)
            hints = [read_hint(each) for each in news.hints]
            taken = self._state.take(trust, self._now())
        except CitadelError as error:
            self._metrics.trust_received.labels("refused").inc()
            if self._state.refuse(read_version(news.trust), error):
                _log.error(events.TRUST_REFUSED, part="bundle", rule=error.rule, error=error.message)
            self._has_reports.set()
            return
        self._metrics.trust_received.labels("taken").inc()
        await self._act(taken)
        for hint in self._state.follow(hints):
            self._on_hint(hint)

    async def _act(self, taken: Taken) -> None:
        if taken.problems:
            _log.error(events.TRUST_REFUSED, part="lists", error="; ".join(taken.problems))
        if taken.trust is None:
            return
        try:
            await asyncio.to_thread(self._keep, taken.trust)
        except CitadelError as error:  # what is revoked must be so now, and a disk may be full for long
            _log.error(events.TRUST_NOT_KEPT, rule=error.rule, error=error.message)
        version = taken.trust.version
        _log.info(events.TRUST_TAKEN, bundle_sequence=version.sequence, crls=len(taken.trust.crls))
        self._on_trust(taken.trust)
        self._has_reports.set()

    async def _report(self, call: Call) -> None:
        """All there is first, then what has changed; several changes within a moment go out together."""
        said: dict[tuple[str, str], ProxyReport] = {}
        names = {"agent": self._name, "version": __version__}
        is_first = True
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            self._has_reports.clear()
            known = {each.key: each for each in (self._state.report(), *islice(self._reports(), MAX_PROXIES))}
            changed = [each for key, each in known.items() if said.get(key) != each]
            gone = [ProxyReport(*key, streams=0) for key in said.keys() - known.keys()]
            for message in report_messages((*changed, *gone), **names, is_complete=is_first):
                try:
                    await call.write(message)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the call is over, and whoever reads is told why
            said, names, is_first = known, {}, False
            await asyncio.sleep(max(_GATHER.total_seconds(), 5 * (loop.time() - started)))
            await self._has_reports.wait()

    def _sequence(self) -> float:
        held = self._state.held
        return held.bundle.sequence if held else math.nan
