"""citadel.v1.TrustService: what to trust goes down to agents as it changes, who trusts it comes up.

News are one encoded message that all streams share. A client that reads slowly has one state
waiting for it, the newest, and never a queue.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeAlias

import grpc

from citadel_py._proto.citadel.v1 import trust_pb2
from citadel_py.ca.authn import Attested, CallCredentials
from citadel_py.ca.evidence import EvidenceLimits, EvidenceTable, Feed, State
from citadel_py.ca.service import credentials_of
from citadel_py.ca.trust_messages import news, read_agent, read_report
from citadel_py.core.admission import Peer
from citadel_py.core.errors import CitadelError, LimitReached, NotReady, PermissionDenied, Unavailable
from citadel_py.core.policy import Caller
from citadel_py.core.ports import Now, Uniform
from citadel_py.core.trust import RenewalHint, Trust
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import CAMetrics
from citadel_py.obs.peers import peer_of
from citadel_py.obs.rpc import add_fields

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Attest: TypeAlias = Callable[[CallCredentials, Peer], Awaitable[Attested]]

SERVICE_NAME: Final = trust_pb2.DESCRIPTOR.services_by_name["TrustService"].full_name
MAX_HINTS: Final = 16

_log = get_logger()


@dataclass(frozen=True, slots=True)
class TrustLimits:
    """Bounds of streams. They last, so that each agent has one all the time."""

    streams: int = 4096
    streams_of_one_caller: int = 16
    age: timedelta = timedelta(minutes=45)  # about; before the age of its connection cuts a stream off
    recheck: timedelta = timedelta(minutes=1)  # of the credential
    pace: timedelta = timedelta(milliseconds=10)  # between two messages of reports that are read


@dataclass(frozen=True, slots=True)
class _Served:
    """What is served now, as it goes out."""

    trust: Trust
    encoded: bytes


class TrustService:
    """The trust stream. `publish` before the first client comes."""

    def __init__(
        self,
        attest: Attest,
        *,
        now: Now,
        uniform: Uniform,
        metrics: CAMetrics,
        limits: TrustLimits | None = None,
        evidence: EvidenceLimits | None = None,
    ) -> None:
        self._attest = attest
        self._now = now
        self._uniform = uniform
        self._limits = limits or TrustLimits()
        self._served: _Served | None = None
        self._signs: tuple[str, int] = ("", 0)  # the authority that signs, and how many there were
        self._hints: tuple[RenewalHint, ...] = ()
        self._streams: set[_Stream] = set()
        self._callers: Counter[str] = Counter()
        self._is_ending = False
        self._counted: tuple[object, Counter[State]] = (None, Counter())
        self.evidence = EvidenceTable(evidence)
        self.news_sent = metrics.trust_news
        self._tell(metrics)

    def handlers(self) -> grpc.GenericRpcHandler:
        """What to add to a server. News are encoded already, so there is no serializer."""
        follow: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self.follow, trust_pb2.TrustReports.FromString
        )
        return grpc.method_handlers_generic_handler(SERVICE_NAME, {"Follow": follow})

    def publish(self, trust: Trust, authority_id: str) -> None:
        """Serve this from now on, to all streams at once; `authority_id` signs now. What is equal changes nothing."""
        if authority_id != self._signs[0]:
            self._signs = authority_id, self._signs[1] + 1
        self._become(trust)

    def hint(self, hint: RenewalHint) -> None:
        """Ask agents to renew early. Only the newest MAX_HINTS are told to those who come later."""
        self._hints = (*self._hints, hint)[-MAX_HINTS:]
        self._become(self.served)

    def end(self) -> None:
        """End all streams."""
        self._is_ending = True
        for stream in self._streams:
            stream.end()

    @property
    def served(self) -> Trust:
        """What is served now. Raises NotReady before there is something."""
        return self._current.trust

    @property
    def encoded(self) -> bytes:
        """The same, as one message."""
        return self._current.encoded

    @property
    def limits(self) -> TrustLimits:
        return self._limits

    def count(self) -> Mapping[State, int]:
        """How many proxies are in each state; counted anew only where something has changed."""
        version = self._served.trust.version if self._served else None
        if version is None:
            return {}
        key = version, self.evidence.changes
        if key != self._counted[0]:
            self._counted = key, self.evidence.count(version)
        return self._counted[1]

    async def follow(self, requests: AsyncIterator[trust_pb2.TrustReports], context: Context) -> None:
        """TrustService.Follow: until the client ends it or goes away, its credential or its age ends, or we do."""
        credentials, peer = credentials_of(context), peer_of(context.peer())
        attested = await self._attest(credentials, peer)
        caller = attested.caller
        add_fields(caller=caller.subject, attested_by=caller.method)
        _check_may_follow(caller, self.served)
        with self._place(caller.subject):
            stream = _Stream(self, context, caller, lambda: self._check_still(credentials, peer, caller))
            self._streams.add(stream)
            age_s = self._limits.age.total_seconds() * (0.9 + self._uniform() / 5)
            end_of_age = asyncio.get_running_loop().call_later(age_s, stream.end)
            try:
                await stream.run(requests)
            finally:
                end_of_age.cancel()
                self._streams.discard(stream)
                stream.leave(self._now())

    def feed(self, caller: str, agent: str) -> Feed:
        """Where the reports of a stream go."""
        return self.evidence.feed(caller, agent, self._now())

    def take(self, feed: Feed, message: trust_pb2.TrustReports) -> None:
        """The reports of one message. Raises BadInput, LimitReached."""
        now = self._now()
        for each in message.reports:
            feed.take(read_report(each), now)
        if message.is_complete:
            feed.is_complete(now)

    @property
    def _current(self) -> _Served:
        if self._served is None:
            raise NotReady("there is no bundle yet", rule="not_ready")
        return self._served

    def _become(self, trust: Trust) -> None:
        authority_id, epoch = self._signs
        encoded = news(trust, self._hints, authority_id=authority_id, epoch=epoch)
        if self._served is None or encoded != self._served.encoded:
            self._served = _Served(trust, encoded)
            for stream in self._streams:
                stream.wake()
            version = trust.version
            _log.info(
                events.TRUST_PUBLISHED,
                bundle_sequence=version.sequence,
                bundle=version.bundle_hash,
                crls=len(trust.crls),
                hints=len(self._hints),
                streams=len(self._streams),
            )

    async def _check_still(self, credentials: CallCredentials, peer: Peer, caller: Caller) -> None:
        """Raise Unauthenticated where the credential is good no more, or for somebody else."""
        try:
            attested = await self._attest(credentials, peer)
        except Unavailable:  # it cannot be told now: what was good stays so
            return
        _check_may_follow(attested.caller, self.served)
        if attested.caller.subject != caller.subject:
            raise PermissionDenied("the credential is another caller's now", rule="caller_changed")

    @contextmanager
    def _place(self, caller: str) -> Iterator[None]:
        if self._is_ending:
            raise Unavailable("the service is ending", rule="service_ending")
        limits = self._limits
        if self._callers.total() >= limits.streams:
            raise LimitReached(f"{limits.streams} streams are open already", rule="too_many_streams")
        if self._callers[caller] >= limits.streams_of_one_caller:
            raise LimitReached(
                f"{caller} has {limits.streams_of_one_caller} streams already", rule="too_many_streams_of_caller"
            )
        self._callers[caller] += 1
        try:
            yield
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]

    def _tell(self, metrics: CAMetrics) -> None:
        metrics.trust_streams.set_function(lambda: len(self._streams))
        metrics.trust_oldest_sequence.set_function(self._oldest_sequence)
        for state in State:
            metrics.trust_proxies.labels(state).set_function(partial(self._count_of, state))

    def _count_of(self, state: State) -> int:
        return self.count().get(state, 0)

    def _oldest_sequence(self) -> float:
        oldest = self.evidence.oldest_sequence()
        return math.nan if oldest is None else oldest


class _Stream:
    """One agent's stream: a task reads its reports, one writes news, one looks at its credential."""

    def __init__(
        self, service: TrustService, context: Context, caller: Caller, check: Callable[[], Awaitable[None]]
    ) -> None:
        self._service = service
        self._context = context
        self._caller = caller
        self._check = check
        self._has_news = asyncio.Event()
        self._is_over = asyncio.Event()
        self._refused: CitadelError | None = None
        self._feed: Feed | None = None

    async def run(self, reports: AsyncIterator[trust_pb2.TrustReports]) -> None:
        """Raises CitadelError."""
        async with asyncio.TaskGroup() as parts:
            tasks = [parts.create_task(part) for part in (self._write(), self._read(reports), self._recheck())]
            await self._is_over.wait()
            for task in tasks:
                task.cancel()
        if self._refused is not None:
            raise self._refused

    def wake(self) -> None:
        """There are news."""
        self._has_news.set()

    def end(self) -> None:
        """Be over soon."""
        self._is_over.set()

    def leave(self, now: datetime) -> None:
        """The stream has ended: say so of its proxies."""
        if self._feed is not None:
            self._feed.end(now)

    async def _write(self) -> None:
        written = b""
        while True:
            if (encoded := self._service.encoded) is written:
                await self._has_news.wait()
                self._has_news.clear()
            else:
                await self._context.write(encoded)
                self._service.news_sent.inc()
                written = encoded

    async def _read(self, reports: AsyncIterator[trust_pb2.TrustReports]) -> None:
        with self._until_it_ends():
            async for message in reports:
                if self._feed is None:
                    self._feed = self._begin(message)
                self._service.take(self._feed, message)
                await asyncio.sleep(self._service.limits.pace.total_seconds())

    async def _recheck(self) -> None:
        with self._until_it_ends():
            while True:
                await asyncio.sleep(self._service.limits.recheck.total_seconds())
                await self._check()

    def _begin(self, message: trust_pb2.TrustReports) -> Feed:
        agent = read_agent(message)
        add_fields(agent=agent, agent_version=message.version)
        return self._service.feed(self._caller.subject, agent)

    @contextmanager
    def _until_it_ends(self) -> Iterator[None]:
        """The stream ends with what runs within; its error is the stream's."""
        try:
            yield
        except CitadelError as error:  # for whoever runs this stream, not for a group of tasks
            self._refused = error
        finally:
            self._is_over.set()


def _check_may_follow(caller: Caller, trust: Trust) -> None:
    """Whoever is of the trust domain may know what verifies it: the bundle is public there."""
    if caller.id is None or caller.id.trust_domain != trust.trust_domain:
        raise PermissionDenied(
            f"{caller.subject} is not in the trust domain {trust.trust_domain}", rule="foreign_trust_domain"
        )
