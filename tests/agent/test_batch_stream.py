"""What a CA may say on the batch stream, and what becomes of it: from a server that says whatever a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py._proto.citadel.v1 import issuance_pb2, issuance_pb2_grpc
from citadel_py.agent.batch_stream import BatchAnswer, BatchNotOffered, BatchStream, StreamEnded
from citadel_py.core.errors import CitadelError, PermissionDenied, Unavailable
from citadel_py.obs.status import status_of
from tests.store.things import new_pki

Answer: TypeAlias = Callable[[issuance_pb2.IssueRequest], list[issuance_pb2.IssueResponse]]

PKI = new_pki()


class Scripted(issuance_pb2_grpc.IssuanceServiceServicer):
    """Answers each request with what `answer` makes of it; None hangs up in order."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.asked: list[str] = []
        self.ended = asyncio.Event()

    async def Issue(  # noqa: N802 - the protocol's name
        self, request_iterator: AsyncIterator[issuance_pb2.IssueRequests], _context: Any
    ) -> AsyncIterator[issuance_pb2.IssueResponses]:
        async for message in request_iterator:
            for request in message.requests:
                self.asked.append(request.request_id)
                if self.answer is None:
                    return
                yield issuance_pb2.IssueResponses(responses=self.answer(request))
        self.ended.set()


@asynccontextmanager
async def server(*, is_offered: bool = True) -> AsyncIterator[tuple[Scripted, grpc.aio.Channel]]:
    service, listener = Scripted(), grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if is_offered:
        issuance_pb2_grpc.add_IssuanceServiceServicer_to_server(service, listener)
    port = listener.add_insecure_port("localhost:0")
    await listener.start()
    try:
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            yield service, channel
    finally:
        await listener.stop(None)


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, BatchStream]]:
    async with server() as (service, channel):
        stream = BatchStream(channel, deadline=timedelta(seconds=20), idle=timedelta(seconds=20))
        yield service, stream
        await stream.close()


def bundle(**changes: object) -> issuance_pb2.Bundle:
    roots = [each.public_bytes(Encoding.DER) for each in PKI.bundle.authorities]
    parts = {"trust_domain": "example.org", "x509_authorities": roots, "sequence": 7, **changes}
    return issuance_pb2.Bundle(**parts)  # type: ignore[arg-type]


def certificate(request: issuance_pb2.IssueRequest, **parts: Any) -> list[issuance_pb2.IssueResponse]:
    answer = issuance_pb2.IssueResponse(request_id=request.request_id, **parts)
    answer.certificate.chain.append(b"a certificate")
    return [answer]


async def ask(stream: BatchStream) -> BatchAnswer:
    return await stream.ask(issuance_pb2.IssueRequest(spiffe_id="spiffe://example.org/web"))


async def failure(stream: BatchStream) -> CitadelError:
    with pytest.raises(CitadelError) as caught:
        await ask(stream)
    return caught.value


async def test_an_answer_has_the_bundle_that_came_before_it(scripted: tuple[Scripted, BatchStream]) -> None:
    service, stream = scripted
    service.answer = lambda request: certificate(request, bundle=bundle())
    first = await ask(stream)
    service.answer = certificate
    second = await ask(stream)
    assert first.bundle == second.bundle
    assert (second.bundle.sequence, second.bundle.content_hash) == (7, PKI.bundle.content_hash)
    assert second.chain == (b"a certificate",)
    assert second.renew_at is None


async def test_the_bundle_of_an_answer_that_nobody_waits_for_counts(scripted: tuple[Scripted, BatchStream]) -> None:
    service, stream = scripted
    stray = issuance_pb2.IssueRequest(request_id="never asked")
    service.answer = lambda request: [*certificate(stray, bundle=bundle()), *certificate(request)]
    assert (await ask(stream)).bundle.sequence == 7


async def test_certificates_after_a_bundle_that_cannot_be_read_are_not_taken_for_those_of_the_one_before(
    scripted: tuple[Scripted, BatchStream],
) -> None:
    service, stream = scripted
    service.answer = lambda request: certificate(request, bundle=bundle())
    await ask(stream)
    service.answer = lambda request: certificate(request, bundle=bundle(x509_authorities=[b"nonsense"]))
    assert (await failure(stream)).rule == "certificate_unreadable"
    service.answer = certificate
    assert (await failure(stream)).rule == "reply_shape"


@pytest.mark.parametrize("changes", [{"x509_authorities": []}, {"trust_domain": "No Name"}, {"sequence": 2**64 - 1}])
async def test_a_bundle_that_is_none_is_refused(
    scripted: tuple[Scripted, BatchStream], changes: dict[str, object]
) -> None:
    service, stream = scripted
    service.answer = lambda request: certificate(request, bundle=bundle(**changes))
    assert not isinstance(await failure(stream), Unavailable)


async def test_an_answer_without_outcome_is_refused(scripted: tuple[Scripted, BatchStream]) -> None:
    service, stream = scripted
    service.answer = lambda request: [issuance_pb2.IssueResponse(request_id=request.request_id)]
    assert (await failure(stream)).rule == "reply_shape"


async def test_a_moment_that_no_calendar_has_is_no_advice(scripted: tuple[Scripted, BatchStream]) -> None:
    service, stream = scripted

    def answer(request: issuance_pb2.IssueRequest) -> list[issuance_pb2.IssueResponse]:
        (response,) = certificate(request, bundle=bundle())
        response.certificate.renew_at.seconds = 2**62
        return [response]

    service.answer = answer
    assert (await ask(stream)).renew_at is None


async def test_a_refusal_has_its_reason_and_its_hint(scripted: tuple[Scripted, BatchStream]) -> None:
    service, stream = scripted
    refusal = PermissionDenied("not you", rule="identity_not_granted", hint="ask somebody")

    def answer(request: issuance_pb2.IssueRequest) -> list[issuance_pb2.IssueResponse]:
        status = status_of(refusal, request_id="r-1", usual=timedelta(seconds=5), uniform=0.5)
        return [issuance_pb2.IssueResponse(request_id=request.request_id, error=status)]

    service.answer = answer
    error = await failure(stream)
    assert isinstance(error, PermissionDenied)
    assert (error.rule, error.hints) == ("identity_not_granted", ("ask somebody",))
    assert "not you; request id r-1" in str(error)


async def test_a_code_that_nobody_knows_may_pass(scripted: tuple[Scripted, BatchStream]) -> None:
    service, stream = scripted

    def answer(request: issuance_pb2.IssueRequest) -> list[issuance_pb2.IssueResponse]:
        response = issuance_pb2.IssueResponse(request_id=request.request_id)
        response.error.code = 99
        return [response]

    service.answer = answer
    assert isinstance(await failure(stream), Unavailable)


async def test_what_a_stream_that_ended_in_order_did_not_answer_can_be_asked_elsewhere(
    scripted: tuple[Scripted, BatchStream],
) -> None:
    _, stream = scripted
    assert isinstance(await failure(stream), StreamEnded)
    assert not stream.is_open
    assert isinstance(await failure(stream), StreamEnded), "at once, without waiting for the deadline"


async def test_a_service_without_the_api_is_told_from_one_that_is_away() -> None:
    async with server(is_offered=False) as (_, channel):
        stream = BatchStream(channel, deadline=timedelta(seconds=20), idle=timedelta(seconds=20))
        assert isinstance(await failure(stream), BatchNotOffered)
        await stream.close()


async def test_a_retired_stream_answers_what_is_open_and_ends_in_order(scripted: tuple[Scripted, BatchStream]) -> None:
    service, stream = scripted
    service.answer = lambda request: certificate(request, bundle=bundle())
    asking = [asyncio.create_task(ask(stream)) for _ in range(5)]
    await asyncio.sleep(0)
    stream.retire()
    assert len(await asyncio.gather(*asking)) == 5
    async with asyncio.timeout(4):
        await service.ended.wait()


async def test_closing_fails_what_is_open(scripted: tuple[Scripted, BatchStream]) -> None:
    service, stream = scripted
    service.answer = lambda _: []
    asking = asyncio.create_task(failure(stream))
    while not service.asked:
        await asyncio.sleep(0.001)
    await stream.close()
    assert isinstance(await asking, Unavailable)
