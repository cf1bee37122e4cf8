"""One stream to the CA's batch API: requests out as they come, answers in any order, and an end for each.

It verifies nothing of what it is told. See proto/citadel/v1/issuance.proto.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from citadel_py._proto.citadel.v1 import issuance_pb2, issuance_pb2_grpc
from citadel_py.agent.ca_call import error_of
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import BadInput, CitadelError, Unavailable, VerificationFailed
from citadel_py.core.pem import load_certificate
from citadel_py.core.spiffe import TrustDomain
from citadel_py.obs.status import read_refusal, refusal_in

_LAST_WORDS_S: Final = 5.0  # for a stream with nothing open to end by itself


class BatchNotOffered(Unavailable):
    """This CA has no batch API: certificates have to be asked for one by one."""

    code = "batch_not_offered"


class StreamEnded(Unavailable):
    """The CA ended the stream in order without having looked at the request: another stream may take it."""

    code = "stream_ended"


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """A chain (DER, leaf first), the bundle that the CA means with it, and when it would like a renewal."""

    chain: Sequence[bytes]
    bundle: Bundle
    renew_at: datetime | None


class BatchStream:
    """Open from the first `ask` until it is retired, has had nothing to do for `idle`, or the CA ends it."""

    def __init__(self, channel: grpc.aio.Channel, *, deadline: timedelta, idle: timedelta) -> None:
        self.is_open = True
        self._deadline = deadline
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._names = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[BatchAnswer]] = {}
        self._outgoing: list[issuance_pb2.IssueRequest] = []
        self._has_news = asyncio.Event()
        self._bundle: Bundle | None = None  # of the certificates that come
        self._timer: asyncio.TimerHandle | None = None
        self._call = issuance_pb2_grpc.IssuanceServiceStub(channel).Issue(self._requests())
        self._reading = asyncio.create_task(self._read())

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._reading.done()

    async def ask(self, request: issuance_pb2.IssueRequest) -> BatchAnswer:
        """The answer. Raises StreamEnded, BatchNotOffered, what the CA refuses with, Unavailable after the deadline."""
        if self._reading.done():
            raise StreamEnded("the CA ended the stream")
        request.request_id = str(next(self._names))
        request.timeout.FromTimedelta(self._deadline)
        with self._awaited(request.request_id) as answer:
            self._outgoing.append(request)
            self._has_news.set()
            try:
                async with asyncio.timeout(self._deadline.total_seconds()):
                    return await answer
            except TimeoutError:
                self.retire()  # the connection may be dead without anybody having said so
                waited = f"{self._deadline.total_seconds():g} s"
                raise Unavailable(f"the CA gave no answer within {waited}", rule="ca_call_failed") from None

    def retire(self) -> None:
        """Take no further requests; it ends when those that are open are answered."""
        self.is_open = False
        if not self._waiting:
            self._end_soon()

    async def close(self) -> None:
        """End it now. What is open fails."""
        self.is_open = False
        self._stop_timer()
        self._call.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    @contextmanager
    def _awaited(self, name: str) -> Iterator[asyncio.Future[BatchAnswer]]:
        self._stop_timer()
        answer = self._waiting[name] = self._loop.create_future()
        try:
            yield answer
        finally:
            del self._waiting[name]
            if not self._waiting:
                self._rest()

    def _rest(self) -> None:
        if self.is_open:
            self._timer = self._loop.call_later(self._idle.total_seconds(), self.retire)
        else:
            self._end_soon()

    def _end_soon(self) -> None:
        """Say that there is nothing more, and hang up on a CA that does not answer even that."""
        self._has_news.set()
        self._stop_timer()
        self._timer = self._loop.call_later(_LAST_WORDS_S, self._call.cancel)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()

    async def _requests(self) -> AsyncIterator[issuance_pb2.IssueRequests]:
        """Whatever has come while the last message was sent goes out together."""
        while self.is_open or self._waiting:
            await self._has_news.wait()
            self._has_news.clear()
            if self._outgoing:
                ready, self._outgoing = self._outgoing, []
                yield issuance_pb2.IssueRequests(requests=ready)

    async def _read(self) -> None:
        error: CitadelError = StreamEnded("the CA ended the stream")
        try:
            async for message in self._call:
                for response in message.responses:
                    self._take(response)
        except grpc.aio.AioRpcError as failure:
            error = _failure(failure)
        except asyncio.CancelledError:  # by `close`, or by the timer of a CA that does not end
            error = Unavailable("the stream was given up", rule="ca_call_failed")
        finally:
            self.is_open = False
            self._stop_timer()
            self._has_news.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)

    def _take(self, response: issuance_pb2.IssueResponse) -> None:
        """Also of an answer that nobody waits for any more the bundle counts for those after it."""
        answer = self._waiting.get(response.request_id)
        try:
            taken = self._read_answer(response)
        except CitadelError as error:
            if answer and not answer.done():
                answer.set_exception(error)
        else:
            if answer and not answer.done():
                answer.set_result(taken)

    def _read_answer(self, response: issuance_pb2.IssueResponse) -> BatchAnswer:
        """Raises what it says, or VerificationFailed, BadInput for what cannot be read."""
        if response.HasField("bundle"):
            self._bundle = None  # what cannot be read must not leave the former one in its place
            self._bundle = _bundle(response.bundle)
        match response.WhichOneof("outcome"):
            case "certificate" if self._bundle:
                certificate = response.certificate
                return BatchAnswer(tuple(certificate.chain), self._bundle, _moment(certificate.renew_at))
            case "error":
                raise error_of(refusal_in(response.error))
            case _:
                raise VerificationFailed("the CA's answer has no outcome, or no bundle", rule="reply_shape")


def _failure(failure: grpc.aio.AioRpcError) -> CitadelError:
    if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
        return BatchNotOffered("the CA has no batch API")
    return error_of(read_refusal(failure))


def _bundle(message: issuance_pb2.Bundle) -> Bundle:
    authorities = tuple(load_certificate(each) for each in message.x509_authorities)
    try:
        return Bundle(TrustDomain(message.trust_domain), authorities, message.sequence)
    except BadInput as error:
        raise VerificationFailed(f"the CA's bundle: {error.message}", rule=error.rule) from error


def _moment(told: Timestamp) -> datetime | None:
    """None where there is none that can be read: it is advice, and not worth an error."""
    try:
        return told.ToDatetime(UTC) if told.seconds else None
    except (ValueError, OverflowError):
        return None
