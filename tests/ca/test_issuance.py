"""The batch API: many requests on one stream, each decided, recorded and answered on its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships .pyi files without py.typed
from structlog.typing import EventDict

from citadel_py._proto.citadel.v1 import issuance_pb2, issuance_pb2_grpc
from citadel_py.ca.authn import Attested, CallCredentials
from citadel_py.ca.issuance import StreamLimits
from citadel_py.core.bundle import Bundle
from citadel_py.core.keys import KeyType, generate_key, same_public_key
from citadel_py.core.verify import verify_svid
from citadel_py.core.x509svid import X509SVID
from citadel_py.obs.status import read_refusal
from tests.ca.support import HOUR, TD, Held, World, new_csr, until

Request: TypeAlias = issuance_pb2.IssueRequest
Answer: TypeAlias = issuance_pb2.IssueResponse

CART = "spiffe://example.org/ns/shop/sa/cart"
CSR = new_csr().encode()


class Stream:
    """A client's end."""

    def __init__(
        self, call: grpc.aio.StreamStreamCall[issuance_pb2.IssueRequests, issuance_pb2.IssueResponses]
    ) -> None:
        self.call = call
        self._answers: list[Answer] = []

    async def write(self, *requests: Request) -> None:
        """In one message."""
        await self.call.write(issuance_pb2.IssueRequests(requests=requests))

    async def read(self) -> Answer:
        while not self._answers:
            message = await self.call.read()
            assert isinstance(message, issuance_pb2.IssueResponses), "the stream ended"
            self._answers.extend(message.responses)
        return self._answers.pop(0)

    async def has_ended(self) -> bool:
        return not self._answers and await self.call.read() is grpc.aio.EOF

    async def ask(self, *requests: Request) -> list[Answer]:
        """All at once; the answers in the order of the requests."""
        await self.write(*requests)
        answers = {answer.request_id: answer for answer in [await self.read() for _ in requests]}
        return [answers[each.request_id] for each in requests]


@asynccontextmanager
async def stream(
    world: World, held: Held | None = None, *, token: str | None = None, options: tuple[tuple[str, int], ...] = ()
) -> AsyncIterator[Stream]:
    async with world.channel(held, *options) as channel:
        headers = (("authorization", f"Bearer {token}"),) if token else ()
        call = issuance_pb2_grpc.IssuanceServiceStub(channel).Issue(metadata=grpc.aio.Metadata(*headers))
        try:
            yield Stream(call)
        finally:
            call.cancel()


def request(name: str = "one", *, csr: bytes = CSR, **fields: object) -> Request:
    return Request(request_id=name, csr=csr, **fields)  # type: ignore[arg-type]  # as each test has it


def verified(world: World, answer: Answer) -> X509SVID:
    chain = [x509.load_der_x509_certificate(each) for each in answer.certificate.chain]
    return verify_svid(chain, world.engine.issuer.bundle, now=world.clock.now())


def reason(answer: Answer) -> tuple[str, str]:
    """The code and the reason of an error."""
    assert answer.WhichOneof("outcome") == "error"
    info = detail(answer, error_details_pb2.ErrorInfo())
    return grpc_name(answer.error.code), info.reason


def detail(answer: Answer, message: error_details_pb2.ErrorInfo) -> error_details_pb2.ErrorInfo:
    assert any(AnyMessage.Unpack(each, message) for each in answer.error.details)
    return message


def grpc_name(code: int) -> str:
    return next(each.name for each in grpc.StatusCode if each.value[0] == code)


# --- certificates


async def test_each_request_gets_a_certificate_for_its_own_key(world: World) -> None:
    keys = [generate_key(KeyType.P256) for _ in range(20)]
    requests = [request(str(n), csr=new_csr(key).encode()) for n, key in enumerate(keys)]
    async with stream(world, token=world.issuer.token()) as call:
        answers = await call.ask(*requests)
        await call.call.done_writing()
        assert await call.has_ended()

    svids = [verified(world, answer) for answer in answers]
    assert {str(svid.id) for svid in svids} == {CART}
    for key, svid in zip(keys, svids, strict=True):
        assert same_public_key(svid.leaf.public_key(), key.public_key())  # type: ignore[arg-type]  # as bytes
    assert sorted(svid.serial for svid in svids) == sorted(entry.serial for entry in world.issued())


async def test_answers_that_are_ready_together_come_together(world: World) -> None:
    world.in_flight.hold()
    async with stream(world, token=world.issuer.token()) as call:
        await call.write(*(request(str(n)) for n in range(20)))
        await until(lambda: len(world.issued()) == 20)
        world.in_flight.release()
        message = await call.call.read()
    assert isinstance(message, issuance_pb2.IssueResponses)
    assert len(message.responses) == 20


async def test_a_csr_may_be_der(world: World) -> None:
    der = x509.load_pem_x509_csr(CSR).public_bytes(Encoding.DER)
    async with stream(world, token=world.issuer.token()) as call:
        (answer,) = await call.ask(request(csr=der))
    assert str(verified(world, answer).id) == CART


async def test_the_bundle_comes_first_and_when_it_has_changed(world: World) -> None:
    async with stream(world, token=world.issuer.token()) as call:
        first, second = [(await call.ask(request(name)))[0] for name in ("one", "two")]
        assert [first.HasField("bundle"), second.HasField("bundle")] == [True, False]
        assert told(first) == world.engine.issuer.bundle

        world.sign_with(world.successor())
        third, fourth = [(await call.ask(request(name)))[0] for name in ("three", "four")]

        assert [third.HasField("bundle"), fourth.HasField("bundle")] == [True, False]
        assert told(third) == world.engine.issuer.bundle
        verified(world, third)
        assert third.bundle.sequence > first.bundle.sequence


def told(answer: Answer) -> Bundle:
    authorities = tuple(x509.load_der_x509_certificate(each) for each in answer.bundle.x509_authorities)
    return Bundle(TD, authorities, sequence=answer.bundle.sequence)


async def test_it_says_when_to_renew(world: World) -> None:
    async with stream(world, token=world.issuer.token()) as call:
        (answer,) = await call.ask(request(lifetime=Duration(seconds=7200)))
    now = world.clock.now()
    part = (datetime.fromtimestamp(answer.certificate.renew_at.seconds, UTC) - now) / (2 * HOUR)
    assert 0.5 <= part <= 0.66
    assert verified(world, answer).not_after == now + 2 * HOUR


async def test_a_join_token_is_good_for_one_certificate(world: World) -> None:
    async with stream(world, token=world.join_token()) as call:
        first, second = [(await call.ask(request(name)))[0] for name in ("one", "two")]
    verified(world, first)
    assert reason(second) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert len(world.issued()) == 1


# --- errors of one request are its own


async def test_a_request_that_is_refused_hurts_no_other(world: World) -> None:
    refused = [
        (request("csr", csr=b"nonsense"), ("INVALID_ARGUMENT", "CSR_NOT_PEM")),
        (request("id", spiffe_id="spiffe://example.org/x"), ("PERMISSION_DENIED", "IDENTITY_NOT_GRANTED")),
        (request("no-id", spiffe_id="x"), ("INVALID_ARGUMENT", "SPIFFE_ID_SCHEME")),
        (request("dns", dns_names=["a.example.org"]), ("PERMISSION_DENIED", "NAMES_NOT_GRANTED")),
        (request("many", dns_names=["a"] * 65), ("INVALID_ARGUMENT", "TOO_MANY_DNS_NAMES")),
        (request("long", lifetime=Duration(seconds=2**40)), ("INVALID_ARGUMENT", "LIFETIME_ABOVE_MAXIMUM")),
        (request("short", lifetime=Duration(nanos=5)), ("INVALID_ARGUMENT", "LIFETIME_BELOW_MINIMUM")),
        (request("late", timeout=Duration()), ("UNAVAILABLE", "DEADLINE_PASSED")),
        (request("past", timeout=Duration(seconds=-(2**50))), ("UNAVAILABLE", "DEADLINE_PASSED")),
        (request(""), ("INVALID_ARGUMENT", "ISSUE_REQUEST_ID")),
    ]
    async with stream(world, token=world.issuer.token()) as call:
        good, *answers = await call.ask(request("good"), *(each for each, _ in refused))
    assert [reason(answer) for answer in answers] == [expected for _, expected in refused]
    verified(world, good)
    assert len(world.issued()) == 1


async def test_a_refusal_that_may_pass_says_when_to_come_back(world: World) -> None:
    world.in_flight.limit = 0
    async with stream(world, token=world.issuer.token()) as call:
        (answer,) = await call.ask(request())
        assert reason(answer) == ("UNAVAILABLE", "TOO_MANY_REQUESTS")
        assert detail(answer, error_details_pb2.RetryInfo()).retry_delay.ToTimedelta() > timedelta(0)
        world.in_flight.limit = 1
        (answer,) = await call.ask(request())
        verified(world, answer)


async def test_two_open_requests_may_not_have_one_name(world: World) -> None:
    world.in_flight.hold()
    async with stream(world, token=world.issuer.token()) as call:
        await call.write(request("same"))
        await call.write(request("same"))
        assert reason(await call.read()) == ("INVALID_ARGUMENT", "ISSUE_REQUEST_ID_IN_USE")
        world.in_flight.release()
        verified(world, await call.read())


async def test_each_request_has_a_line_and_an_id_that_the_ledger_has_too(world: World, log: list[EventDict]) -> None:
    async with stream(world, token=world.issuer.token()) as call:
        good, bad = await call.ask(request("good"), request("bad", csr=b""))
        await call.call.done_writing()
        assert await call.has_ended()
    await until(lambda: any(line["event"] == "rpc.finished" for line in log))
    lines = {str(line["event"]): line for line in log}
    (entry,) = world.issued()
    info = detail(bad, error_details_pb2.RequestInfo())
    assert entry.serial == lines["issuance.issued"]["serial"] == verified(world, good).serial
    assert entry.request_id == lines["issuance.issued"]["request"]
    assert info.request_id == lines["issuance.refused"]["request"]
    assert lines["issuance.refused"]["rule"] == "csr_empty"
    assert {entry.request_id, info.request_id} == {f"{lines['rpc.finished']['request_id']}-{n}" for n in (1, 2)}
    assert (lines["rpc.finished"]["issued"], lines["rpc.finished"]["refused"]) == (1, 1)


# --- who calls


async def refusal(call: Stream) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    told = read_refusal(caught.value)
    return told.code.name, told.reason


async def test_a_stream_of_nobody_ends_before_anything_is_read(world: World) -> None:
    async with stream(world, token="nonsense") as call:
        assert await refusal(call) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


async def test_a_certificate_that_ends_ends_what_it_is_good_for(world: World) -> None:
    async with stream(world, world.mint(ttl=HOUR)) as call:
        (first,) = await call.ask(request("first"))
        verified(world, first)
        world.clock.advance(HOUR + timedelta(seconds=1))
        (second,) = await call.ask(request("second"))
    assert reason(second) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert len(world.issued()) == 1


async def test_a_token_that_ends_ends_what_it_is_good_for(world: World) -> None:
    async with stream(world, token=world.issuer.token()) as call:
        verified(world, (await call.ask(request("first")))[0])
        world.clock.advance(HOUR)
        assert reason((await call.ask(request("second")))[0]) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


async def test_who_asks_is_found_out_once_for_a_message(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    attest, times = world.authentication.attest, list[datetime]()

    async def counting(credentials: CallCredentials, *, now: datetime) -> Attested:
        times.append(now)
        return await attest(credentials, now=now)

    monkeypatch.setattr(world.authentication, "attest", counting)
    async with stream(world, token=world.issuer.token()) as call:
        assert len(await call.ask(*(request(str(number)) for number in range(5)))) == 5
    assert len(times) == 2  # the stream itself, and the message


async def test_one_caller_may_not_have_all_streams(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = StreamLimits(streams=2, streams_of_one_caller=1)
    async with World(tmp_path, token_key, streams=limits).running() as world:
        await check_streams_of(world)


async def check_streams_of(world: World) -> None:
    other = world.issuer.token(sub="system:serviceaccount:shop:pay")
    async with stream(world, token=world.issuer.token()) as first:
        verified(world, (await first.ask(request()))[0])
        async with stream(world, token=world.issuer.token()) as second:
            assert await refusal(second) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS_OF_CALLER")
        async with stream(world, token=other) as third:
            verified(world, (await third.ask(request()))[0])
            async with stream(world, world.mint()) as fourth:
                assert await refusal(fourth) == ("UNAVAILABLE", "TOO_MANY_STREAMS")


# --- clients that read slowly, go away; a service that stops


async def test_a_client_that_does_not_read_is_not_read_from(world: World) -> None:
    """Requests and answers have several kilobytes each: whatever is not bounded would grow by megabytes."""
    names = [f"{n}.{'x' * 50}" for n in range(60)]
    small = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))  # what the client's own side keeps
    async with stream(world, token=world.issuer.token(), options=small) as call:
        written = 0

        async def write() -> None:
            nonlocal written
            for number in range(5000):
                await call.write(request(str(number), csr=b"x" * 8000, dns_names=names))
                written += 1

        writing = asyncio.create_task(write())
        seen = -1
        while seen != written:
            seen = written
            await asyncio.sleep(0.3)  # no condition: what is waited for is that nothing happens
        writing.cancel()
        assert written < 1000
        async with stream(world, world.mint()) as other:
            verified(world, (await other.ask(request()))[0])


async def test_what_was_signed_for_a_client_that_goes_away_is_in_the_ledger(world: World) -> None:
    got: set[str] = set()
    for after in range(1, 30, 4):
        async with stream(world, token=world.issuer.token()) as call:
            for number in range(40):
                await call.write(request(str(number)))
            for _ in range(after):
                got.add(verified(world, await call.read()).serial)
    await until(lambda: world.metrics_issued() <= len(world.issued()))
    recorded = {entry.serial for entry in world.issued()}
    assert got <= recorded
    assert len(recorded) == len(world.issued())


async def test_a_stop_answers_what_was_read_and_ends_the_stream_before_its_grace(world: World) -> None:
    async with stream(world, token=world.issuer.token()) as call:
        answers = await call.ask(*(request(str(number)) for number in range(10)))
        async with asyncio.timeout(10):
            await world.server.stop(timedelta(seconds=60))
        assert await call.has_ended()
        assert await call.call.code() is grpc.StatusCode.OK
    assert len(answers) == len(world.issued()) == 10


async def test_a_stream_ends_in_order_when_it_is_old(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = StreamLimits(age=timedelta(milliseconds=50))
    async with (
        World(tmp_path, token_key, streams=limits).running() as world,
        stream(world, token=world.issuer.token()) as call,
        asyncio.timeout(10),
    ):
        assert await call.has_ended()
        assert await call.call.code() is grpc.StatusCode.OK
