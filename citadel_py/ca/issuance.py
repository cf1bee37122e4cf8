"""citadel.v1.IssuanceService: many certificates over one authenticated stream, each answered on its own.

Nothing is kept for a client that does not read: while too many of its requests are open, no further
one is read, and gRPC makes it wait.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

import grpc
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.timestamp_pb2 import Timestamp

from citadel_py._proto.citadel.v1 import issuance_pb2, issuance_pb2_grpc
from citadel_py.ca.authn import Attested, CallCredentials
from citadel_py.ca.in_flight import InFlight
from citadel_py.ca.issuing import Issued, Issuing, Order
from citadel_py.ca.service import credentials_of
from citadel_py.ca.wishes import read_stream_wishes, read_timeout
from citadel_py.core.admission import Peer
from citadel_py.core.csr import CsrPolicy, SigningRequest, parse_csr
from citadel_py.core.errors import BadInput, CitadelError, LimitReached, Unavailable
from citadel_py.core.issuer import Issuer
from citadel_py.core.ports import Uniform
from citadel_py.obs import events
from citadel_py.obs.floods import Floods
from citadel_py.obs.logging import get_logger
from citadel_py.obs.peers import peer_of
from citadel_py.obs.rpc import add_fields, request_id
from citadel_py.obs.status import status_of

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = issuance_pb2.DESCRIPTOR.services_by_name["IssuanceService"].full_name
_REQUEST_ID = re.compile(r"[!-~]{1,64}")

_log = get_logger()


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of streams. All that are open count among the RPCs of their listener, so these are fewer.

    A stream ends in order after about `age`, before the age of its connection cuts it off.
    """

    streams: int = 512
    streams_of_one_caller: int = 16
    open_requests: int = 64  # of one stream
    retry_after: timedelta = timedelta(seconds=5)  # where an error does not say
    age: timedelta = timedelta(minutes=45)


class IssuanceService(issuance_pb2_grpc.IssuanceServiceServicer):
    """The batch API."""

    def __init__(
        self, issuing: Issuing, in_flight: InFlight, *, uniform: Uniform, limits: StreamLimits | None = None
    ) -> None:
        self._issuing = issuing
        self._in_flight = in_flight
        self._uniform = uniform
        self._limits = limits or StreamLimits()
        self._callers: Counter[str] = Counter()
        self._streams: set[_Stream] = set()
        self._common = _Common()
        self._floods = Floods()
        self._is_ending = False

    async def Issue(  # type: ignore[override]  # noqa: N802 - the protocol's name; stubs know generators only
        self, request_iterator: AsyncIterator[issuance_pb2.IssueRequests], context: Context
    ) -> None:
        """Answer requests until the client has no more, it goes away, or the service ends."""
        credentials, peer = credentials_of(context), peer_of(context.peer())
        attested = await self._issuing.attest(credentials, peer)
        add_fields(caller=attested.caller.subject, attested_by=attested.caller.method)
        with self._place(attested.caller.subject):
            stream = _Stream(self, context, credentials, peer)
            self._streams.add(stream)
            age_s = self._limits.age.total_seconds() * (0.9 + self._uniform() / 5)
            end_of_age = asyncio.get_running_loop().call_later(age_s, stream.end)
            try:
                await stream.run(request_iterator)
            finally:
                end_of_age.cancel()
                self._streams.discard(stream)
                add_fields(issued=stream.issued, refused=stream.refused)

    def end(self) -> None:
        """Read no further request. Streams answer what they have read, and end."""
        self._is_ending = True
        for stream in self._streams:
            stream.end()

    @property
    def limits(self) -> StreamLimits:
        return self._limits

    async def attest(self, credentials: CallCredentials, peer: Peer) -> Attested | CitadelError:
        """For whom these credentials are good now, else why for nobody."""
        try:
            return await self._issuing.attest(credentials, peer)
        except CitadelError as error:
            return error

    async def certify(self, attested: Attested, order: Order, peer: Peer) -> Issued:
        """One certificate. Raises CitadelError."""
        async with self._in_flight.one():
            return await self._issuing.issue(attested, order, peer)

    def order(self, request: issuance_pb2.IssueRequest, id: str) -> Order:
        """What a request asks for. Raises BadInput and other errors of what it holds."""
        timeout = read_timeout(request)
        ends_at = None if timeout is None else time.monotonic() + timeout.total_seconds()

        def parse(policy: CsrPolicy) -> SigningRequest:
            return parse_csr(request.csr, policy)

        wanted = read_stream_wishes(request, self._issuing.engine.policy.limits)
        return Order(wanted, parse, id, ends_at)

    def certificate(self, issued: Issued) -> issuance_pb2.Certificate:
        renew_at = Timestamp(seconds=int(issued.renew_at.timestamp()))
        chain = (issued.svid.leaf_der, *self._common.of(issued.issuer).chain)
        return issuance_pb2.Certificate(chain=chain, renew_at=renew_at)

    def bundle(self, issuer: Issuer) -> issuance_pb2.Bundle:
        """The bundle of an issuer, as all streams send it."""
        return self._common.of(issuer).bundle

    def refusal(self, error: CitadelError, id: str, peer: Peer) -> issuance_pb2.IssueResponse:
        """The answer of a request that gets no certificate, in the words of a unary call."""
        if self._floods.may_write(error.rule, peer.address):
            _log.info(events.ISSUANCE_REFUSED, request=id, rule=error.rule, error=error.message)
        status = status_of(error, request_id=id, usual=self._limits.retry_after, uniform=self._uniform())
        return issuance_pb2.IssueResponse(error=status)

    @contextmanager
    def _place(self, caller: str) -> Iterator[None]:
        if self._is_ending:
            raise Unavailable("the service is ending", rule="service_ending")
        if self._callers.total() >= self._limits.streams:
            raise Unavailable(f"{self._limits.streams} streams are open already", rule="too_many_streams")
        if self._callers[caller] >= self._limits.streams_of_one_caller:
            raise LimitReached(
                f"{caller} has {self._limits.streams_of_one_caller} streams already", rule="too_many_streams_of_caller"
            )
        self._callers[caller] += 1
        try:
            yield
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]


class _Stream:
    """One client's stream: a task that reads, one for each request that is open, and one that writes."""

    def __init__(self, service: IssuanceService, context: Context, credentials: CallCredentials, peer: Peer) -> None:
        self._service = service
        self._context = context
        self._credentials = credentials
        self._peer = peer
        self._id = request_id()
        self._room = asyncio.Semaphore(service.limits.open_requests)
        self._open: set[str] = set()
        self._answers: list[tuple[issuance_pb2.IssueResponse, Issuer | None]] = []
        self._has_news = asyncio.Event()
        self._is_done = False
        self._told: Issuer | None = None  # whose bundle the client has
        self._reading: asyncio.Task[None] | None = None
        self._number = 0
        self.issued = 0
        self.refused = 0

    async def run(self, requests: AsyncIterator[issuance_pb2.IssueRequests]) -> None:
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._write())
            async with asyncio.TaskGroup() as works:
                self._reading = works.create_task(self._read(requests, works))
            self._is_done = True
            self._has_news.set()

    def end(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, requests: AsyncIterator[issuance_pb2.IssueRequests], works: asyncio.TaskGroup) -> None:
        """Who asks is found out for each message anew: credentials end, and are used up."""
        async for message in requests:
            attested = await self._service.attest(self._credentials, self._peer)
            for request in message.requests:
                await self._room.acquire()
                self._number += 1
                id = f"{self._id}-{self._number}"
                if isinstance(attested, CitadelError):
                    self._refuse(request, id, attested)
                else:
                    works.create_task(self._serve(request, id, attested))

    async def _serve(self, request: issuance_pb2.IssueRequest, id: str, attested: Attested) -> None:
        try:
            with self._opened(request.request_id):
                issued = await self._service.certify(attested, self._service.order(request, id), self._peer)
        except CitadelError as error:
            self._refuse(request, id, error)
        else:
            self.issued += 1
            _log.debug(events.ISSUANCE_ISSUED, request=id, **issued.facts())
            answer = issuance_pb2.IssueResponse(certificate=self._service.certificate(issued))
            self._answer(request, answer, issued.issuer)

    def _refuse(self, request: issuance_pb2.IssueRequest, id: str, error: CitadelError) -> None:
        self.refused += 1
        self._answer(request, self._service.refusal(error, id, self._peer), None)

    def _answer(
        self, request: issuance_pb2.IssueRequest, answer: issuance_pb2.IssueResponse, issuer: Issuer | None
    ) -> None:
        answer.request_id = request.request_id[:64]
        self._answers.append((answer, issuer))
        self._has_news.set()

    async def _write(self) -> None:
        """Whatever is ready goes out together: to write is what costs, and a commit makes many ready at once."""
        while self._answers or not self._is_done:
            if not self._answers:
                self._has_news.clear()
                await self._has_news.wait()
                continue
            ready, self._answers = self._answers, []
            for answer, issuer in ready:
                if issuer is not None and self._is_news(issuer):
                    answer.bundle.CopyFrom(self._service.bundle(issuer))
                    self._told = issuer
            await self._context.write(issuance_pb2.IssueResponses(responses=(answer for answer, _ in ready)))
            for _ in ready:
                self._room.release()

    @contextmanager
    def _opened(self, name: str) -> Iterator[None]:
        if not _REQUEST_ID.fullmatch(name):
            raise BadInput("request_id is not 1 to 64 printable ASCII characters", rule="issue_request_id")
        if name in self._open:
            raise BadInput(f"a request {name} is open on this stream", rule="issue_request_id_in_use")
        self._open.add(name)
        try:
            yield
        finally:
            self._open.discard(name)

    def _is_news(self, issuer: Issuer) -> bool:
        told = self._told
        return told is not issuer and (told is None or told.bundle.content_hash != issuer.bundle.content_hash)


@dataclass(frozen=True)
class _Encoded:
    """What the certificates of one issuer have in common."""

    issuer: Issuer | None = None
    chain: tuple[bytes, ...] = ()
    bundle: issuance_pb2.Bundle = field(default_factory=issuance_pb2.Bundle)


class _Common:
    """The same, encoded once for all streams."""

    def __init__(self) -> None:
        self._encoded = _Encoded()

    def of(self, issuer: Issuer) -> _Encoded:
        if issuer is not self._encoded.issuer:
            self._encoded = _encode(issuer)
        return self._encoded


def _encode(issuer: Issuer) -> _Encoded:
    bundle = issuance_pb2.Bundle(
        trust_domain=issuer.bundle.trust_domain.name,
        x509_authorities=[each.public_bytes(Encoding.DER) for each in issuer.bundle.authorities],
        sequence=issuer.bundle.sequence,
    )
    return _Encoded(issuer, tuple(each.public_bytes(Encoding.DER) for each in issuer.intermediates), bundle)
