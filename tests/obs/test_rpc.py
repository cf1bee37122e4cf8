from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import grpc
import pytest

from citadel_py.core.errors import (
    CitadelError,
    InvalidConfiguration,
    InvalidCSR,
    LedgerUnavailable,
    PermissionDenied,
    Unauthenticated,
    VerificationFailed,
)
from citadel_py.obs.floods import OF_A_NETWORK
from citadel_py.obs.metrics import Metrics
from citadel_py.obs.rpc import RpcInterceptor, add_fields, request_id
from citadel_py.obs.status import read_refusal

Lines: TypeAlias = list[MutableMapping[str, Any]]
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]

Code = grpc.StatusCode


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def serve(metrics: Metrics) -> Serve:
    @asynccontextmanager
    async def serve(**handlers: Any) -> AsyncIterator[grpc.aio.Channel]:
        interceptor = RpcInterceptor(metrics, uniform=lambda: 0.25, trailing=lambda: (("citadel-mtls-port", "15013"),))
        server = grpc.aio.server(interceptors=[interceptor], options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield channel
        finally:
            await server.stop(0)

    return serve


def unary(behaviour: Callable[..., Any]) -> Any:
    return grpc.unary_unary_rpc_method_handler(behaviour)


def streaming(behaviour: Callable[..., Any]) -> Any:
    return grpc.stream_stream_rpc_method_handler(behaviour)


def raising(error: Exception) -> Any:
    async def handler(_request: bytes, _context: Context) -> bytes:
        raise error

    return unary(handler)


async def _echo(request: bytes, _context: Context) -> bytes:
    return request


def call_of(channel: grpc.aio.Channel, method: str = "Call", *, timeout: float | None = None) -> Any:
    callable_: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/test.Test/{method}")
    return callable_(b"ping", timeout=timeout)


def stream_of(channel: grpc.aio.Channel) -> Any:
    callable_: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/test.Test/Call")
    return callable_()


async def failure_of(channel: grpc.aio.Channel, method: str = "Call") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_of(channel, method)
    return caught.value


async def the_lines(lines: Lines, count: int) -> Lines:
    async with asyncio.timeout(5):
        while len(lines) < count:
            await asyncio.sleep(0)
    assert len(lines) == count
    return lines


async def the_line(lines: Lines) -> MutableMapping[str, Any]:
    return (await the_lines(lines, 1))[0]


async def test_a_reply_carries_the_request_id_that_the_handler_and_the_log_saw(serve: Serve, lines: Lines) -> None:
    seen = []

    async def handler(request: bytes, _context: Context) -> bytes:
        seen.append(request_id())
        add_fields(serial="0a", method="cannot be forged")
        return request + b" pong"

    async with serve(Call=unary(handler)) as channel:
        call = call_of(channel)
        assert await call == b"ping pong"
        trailing = dict(await call.trailing_metadata())

    assert trailing == {"citadel-request-id": seen[0], "citadel-mtls-port": "15013"}
    line = await the_line(lines)
    assert line["event"] == "rpc.finished"
    assert line["log_level"] == "info"
    assert line["request_id"] == seen[0]
    assert line["method"] == "/test.Test/Call"
    assert line["code"] == "OK"
    assert line["serial"] == "0a"
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["duration_s"] >= 0


async def test_two_rpcs_have_different_ids_and_do_not_share_fields(serve: Serve, lines: Lines) -> None:
    async def handler(request: bytes, _context: Context) -> bytes:
        if not lines:
            add_fields(first=True)
        return request

    async with serve(Call=unary(handler)) as channel:
        await call_of(channel)
        await call_of(channel)

    first, second = await the_lines(lines, 2)
    assert first["request_id"] != second["request_id"]
    assert "first" not in second


def test_outside_of_an_rpc_there_is_no_id_and_fields_go_nowhere() -> None:
    add_fields(serial="0a")

    assert request_id() == ""


@pytest.mark.parametrize(
    ("error", "code", "message", "reason"),
    [
        (
            InvalidCSR("two blocks", rule="csr_blocks", hint="send one"),
            Code.INVALID_ARGUMENT,
            "two blocks",
            "CSR_BLOCKS",
        ),
        (
            PermissionDenied("not yours", rule="identity_not_granted"),
            Code.PERMISSION_DENIED,
            "not yours",
            "IDENTITY_NOT_GRANTED",
        ),
        (
            Unauthenticated("token expired at noon", rule="jwt_expired"),
            Code.UNAUTHENTICATED,
            "the caller could not be authenticated",
            "UNAUTHENTICATED",
        ),
        (
            LedgerUnavailable("/var/lib/ledger.db: disk full"),
            Code.UNAVAILABLE,
            "not available now, try again later",
            "LEDGER_UNAVAILABLE",
        ),
        (InvalidConfiguration("/etc/secret/path is odd"), Code.INTERNAL, "internal error", "INTERNAL"),
        (VerificationFailed("no path", rule="path"), Code.INTERNAL, "internal error", "INTERNAL"),
        (CitadelError("odd", rule="self_check_failed"), Code.INTERNAL, "internal error", "INTERNAL"),
        (ZeroDivisionError("secret detail"), Code.INTERNAL, "internal error", "INTERNAL"),
    ],
)
async def test_an_error_becomes_a_status_with_details(
    serve: Serve, lines: Lines, error: Exception, code: grpc.StatusCode, message: str, reason: str
) -> None:
    async with serve(Call=raising(error)) as channel:
        refusal = read_refusal(await failure_of(channel))

    line = await the_line(lines)
    assert (refusal.code, refusal.message, refusal.reason) == (code, message, reason)
    assert refusal.request_id == line["request_id"] != ""
    assert refusal.hints == (error.hints if isinstance(error, InvalidCSR) else ())
    assert (refusal.retry_after is not None) == (code is Code.UNAVAILABLE)
    assert line["code"] == code.name


async def test_the_log_has_the_whole_reason_of_an_opaque_refusal(serve: Serve, lines: Lines) -> None:
    async with serve(Call=raising(Unauthenticated("token expired at noon", rule="jwt_expired"))) as channel:
        await failure_of(channel)

    line = await the_line(lines)
    assert (line["rule"], line["error"], line["log_level"]) == ("jwt_expired", "token expired at noon", "info")


async def test_a_flood_of_refusals_is_counted_and_not_all_of_it_written(
    serve: Serve, lines: Lines, metrics: Metrics
) -> None:
    async with serve(Call=raising(Unauthenticated("no", rule="jwt_expired")), Last=unary(_echo)) as channel:
        for _ in range(OF_A_NETWORK + 2):
            await failure_of(channel)
        await call_of(channel, "Last")
    await the_lines(lines, OF_A_NETWORK + 1)
    labels = {"method": "/test.Test/Call", "reason": "jwt_expired"}
    assert metrics.registry.get_sample_value("citadel_rpc_refusals_total", labels) == OF_A_NETWORK + 2


async def test_the_log_has_the_traceback_of_what_we_did_not_expect(serve: Serve, lines: Lines) -> None:
    error = ZeroDivisionError("secret detail")
    async with serve(Call=raising(error)) as channel:
        await failure_of(channel)

    line = await the_line(lines)
    assert line["exc_info"] is error
    assert line["log_level"] == "error"


async def test_a_refusal_that_may_be_repeated_says_when_with_jitter(serve: Serve, lines: Lines) -> None:
    async with serve(Call=raising(LedgerUnavailable("away"))) as channel:
        error = await failure_of(channel)

    assert read_refusal(error).retry_after == timedelta(seconds=5) * 0.75
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "3750"
    assert (await the_line(lines))["log_level"] == "warning"


async def test_a_refusal_carries_the_metadata_of_every_reply(serve: Serve) -> None:
    async with serve(Call=raising(PermissionDenied("no"))) as channel:
        assert dict((await failure_of(channel)).trailing_metadata())["citadel-mtls-port"] == "15013"


async def test_a_long_message_is_cut_so_that_it_fits_into_headers(serve: Serve) -> None:
    async with serve(Call=raising(InvalidCSR("x" * 100_000))) as channel:
        assert len(read_refusal(await failure_of(channel)).message) == 1000


@pytest.mark.parametrize("metadata", [(), (("theirs", "1"),)])
async def test_a_handler_may_abort_by_itself(serve: Serve, lines: Lines, metadata: tuple[tuple[str, str], ...]) -> None:
    async def handler(_request: bytes, context: Context) -> bytes:
        context.set_trailing_metadata((("theirs", "1"),))
        await context.abort(Code.NOT_FOUND, "not here", metadata)

    async with serve(Call=unary(handler)) as channel:
        error = await failure_of(channel)

    trailing = dict(error.trailing_metadata())
    assert (error.code(), error.details(), trailing["theirs"]) == (Code.NOT_FOUND, "not here", "1")
    line = await the_line(lines)
    assert trailing["citadel-request-id"] == line["request_id"]
    assert line["code"] == "NOT_FOUND"


async def test_a_handler_may_set_a_code_and_metadata(serve: Serve, lines: Lines) -> None:
    async def handler(_request: bytes, context: Context) -> bytes:
        context.set_trailing_metadata((("theirs", "1"),))
        context.set_code(Code.ALREADY_EXISTS)
        return b""

    async with serve(Call=unary(handler)) as channel:
        error = await failure_of(channel)

    assert error.code() is Code.ALREADY_EXISTS
    assert set(dict(error.trailing_metadata())) == {"theirs", "citadel-request-id", "citadel-mtls-port"}
    assert (await the_line(lines))["code"] == "ALREADY_EXISTS"


async def test_an_unknown_method_is_answered_and_logged_with_a_request_id(
    serve: Serve, lines: Lines, metrics: Metrics
) -> None:
    async with serve() as channel:
        error = await failure_of(channel, "Guessed")

    assert error.code() is Code.UNIMPLEMENTED
    line = await the_line(lines)
    assert dict(error.trailing_metadata())["citadel-request-id"] == line["request_id"]
    assert line["method"] == "/test.Test/Guessed"
    assert (
        'citadel_rpc_duration_seconds_count{code="UNIMPLEMENTED",method="unknown"} 1.0' in metrics.exposition().decode()
    )
    assert "Guessed" not in metrics.exposition().decode()


async def test_a_refusal_is_measured_by_its_rule(serve: Serve, metrics: Metrics, lines: Lines) -> None:
    async with serve(Call=raising(InvalidCSR("two blocks", rule="csr_blocks"))) as channel:
        await failure_of(channel)
    await the_line(lines)

    text = metrics.exposition().decode()
    assert 'citadel_rpc_refusals_total{method="/test.Test/Call",reason="csr_blocks"} 1.0' in text
    assert 'citadel_rpc_duration_seconds_count{code="INVALID_ARGUMENT",method="/test.Test/Call"} 1.0' in text
    assert 'citadel_rpc_in_flight{method="/test.Test/Call"} 0.0' in text


async def test_a_call_that_its_client_gave_up_is_logged_as_cancelled(
    serve: Serve, lines: Lines, metrics: Metrics
) -> None:
    started, cleaned_up = asyncio.Event(), asyncio.Event()

    async def handler(_request: bytes, _context: Context) -> bytes:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()
        return b""

    async with serve(Call=unary(handler)) as channel:
        call = asyncio.ensure_future(call_of(channel))
        await started.wait()
        assert 'citadel_rpc_in_flight{method="/test.Test/Call"} 1.0' in metrics.exposition().decode()
        call.cancel()
        line = await the_line(lines)

    assert line["code"] == "CANCELLED"
    assert cleaned_up.is_set()


async def test_a_call_that_ran_out_of_time_is_logged_as_such(serve: Serve, lines: Lines) -> None:
    async def handler(_request: bytes, _context: Context) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with serve(Call=unary(handler)) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await call_of(channel, timeout=0.05)
        assert (await the_line(lines))["code"] == "DEADLINE_EXCEEDED"


async def echo(requests: AsyncIterator[bytes], _context: Context) -> AsyncIterator[bytes]:
    async for request in requests:
        if request == b"refuse":
            raise PermissionDenied("not this one", rule="identity_not_granted")
        if request == b"break":
            raise ZeroDivisionError
        yield request


async def read_and_write(_requests: AsyncIterator[bytes], context: Context) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:  # type: ignore[comparison-overlap]  # as grpc does it
        await context.write(request)


@pytest.mark.parametrize("handler", [echo, read_and_write])
async def test_a_stream_answers_each_message_and_is_one_line(
    serve: Serve, lines: Lines, handler: Callable[..., Any]
) -> None:
    async with serve(Call=streaming(handler)) as channel:
        call = stream_of(channel)
        for message in (b"1", b"2"):
            await call.write(message)
            assert await call.read() == message
        assert not lines
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is Code.OK
        line = await the_line(lines)

    assert line["code"] == "OK"
    assert dict(await call.trailing_metadata())["citadel-request-id"] == line["request_id"]


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [(b"refuse", Code.PERMISSION_DENIED, "IDENTITY_NOT_GRANTED"), (b"break", Code.INTERNAL, "INTERNAL")],
)
async def test_an_error_in_the_midst_of_a_stream_ends_it_with_details(
    serve: Serve, lines: Lines, message: bytes, code: grpc.StatusCode, reason: str
) -> None:
    async with serve(Call=streaming(echo)) as channel:
        call = stream_of(channel)
        await call.write(b"1")
        assert await call.read() == b"1"
        await call.write(message)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

    assert read_refusal(caught.value).code is code
    assert read_refusal(caught.value).reason == reason
    assert (await the_line(lines))["code"] == code.name


async def test_a_stream_whose_client_went_away_is_cancelled_and_its_handler_cleans_up(
    serve: Serve, lines: Lines
) -> None:
    cleaned_up = asyncio.Event()

    async def endless(_requests: AsyncIterator[bytes], _context: Context) -> AsyncIterator[bytes]:
        try:
            yield b"1"
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    async with serve(Call=streaming(endless)) as channel:
        call = stream_of(channel)
        assert await call.read() == b"1"
        call.cancel()
        line = await the_line(lines)

    assert line["code"] == "CANCELLED"
    assert cleaned_up.is_set()


async def test_a_client_that_goes_away_while_the_stream_reads_is_no_error(serve: Serve, lines: Lines) -> None:
    async with serve(Call=streaming(echo)) as channel:
        call = stream_of(channel)
        await call.write(b"1")
        assert await call.read() == b"1"
        call.cancel()
        assert (await the_line(lines))["log_level"] == "info"


async def test_a_stream_that_floods_a_client_that_goes_away_is_cancelled(serve: Serve, lines: Lines) -> None:
    async def flood(_requests: AsyncIterator[bytes], _context: Context) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536

    async with serve(Call=streaming(flood)) as channel:
        call = stream_of(channel)
        await call.read()
        call.cancel()
        assert (await the_line(lines))["code"] == "CANCELLED"


async def after_the_client_left(then: Callable[[], Awaitable[None]]) -> AsyncIterator[bytes]:
    yield b"1"
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await then()


async def test_a_write_to_a_client_that_is_gone_is_a_cancellation(
    serve: Serve, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(_requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async def write_in_a_group() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(context.write(b"2"))

        async for response in after_the_client_left(write_in_a_group):
            yield response

    async with serve(Call=streaming(handler)) as channel:
        call = stream_of(channel)
        assert await call.read() == b"1"
        call.cancel()
        assert (await the_line(lines))["code"] == "CANCELLED"
    assert caplog.records == []


async def test_an_error_after_the_client_left_is_told_in_our_log_alone(
    serve: Serve, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    error = ZeroDivisionError()

    async def handler(_requests: AsyncIterator[bytes], _context: Context) -> AsyncIterator[bytes]:
        async def fail() -> None:
            raise error

        async for response in after_the_client_left(fail):
            yield response

    async with serve(Call=streaming(handler)) as channel:
        call = stream_of(channel)
        assert await call.read() == b"1"
        call.cancel()
        line = await the_line(lines)
    assert (line["code"], line["exc_info"]) == ("INTERNAL", error)
    assert caplog.records == []


async def test_health_checks_that_succeed_are_logged_at_debug_level_only(lines: Lines, metrics: Metrics) -> None:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    server = grpc.aio.server(
        interceptors=[RpcInterceptor(metrics, uniform=lambda: 0.5)], options=[("grpc.so_reuseport", 0)]
    )
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    await server.stop(0)

    assert [(line["code"], line["log_level"]) for line in await the_lines(lines, 2)] == [
        ("OK", "debug"),
        ("NOT_FOUND", "info"),
    ]


async def test_a_handler_that_blocks_the_loop_is_not_accepted(metrics: Metrics) -> None:
    async def continuation(_details: object) -> Any:
        return unary(lambda request, _context: request)

    class Details:
        method = "/test.Test/Call"

    with pytest.raises(TypeError, match="neither a coroutine nor an async generator"):
        await RpcInterceptor(metrics, uniform=lambda: 0.5).intercept_service(continuation, Details())  # type: ignore[arg-type]  # has what is read
