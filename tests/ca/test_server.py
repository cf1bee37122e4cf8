"""The listeners: health, reflection, bounds, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import cast

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from citadel_py._proto.istio.v1.auth.ca_pb2 import IstioCertificateRequest
from citadel_py.ca.in_flight import InFlight
from citadel_py.ca.server import Limits
from citadel_py.ca.service import SERVICE_NAME, Context
from citadel_py.core.errors import CitadelError, Unavailable
from citadel_py.obs.status import read_refusal
from tests.ca.support import World, call, new_csr

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str) -> int:
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(reply.status)


@pytest.mark.parametrize(
    "service", ["", "istio.v1.auth.IstioCertificateService", "citadel.v1.IssuanceService", "citadel.v1.TrustService"]
)
async def test_health_says_what_it_was_told(world: World, service: str) -> None:
    async with world.channel() as channel:
        assert await health(channel, service) == SERVING
        await world.server.set_serving(serving=False)
        assert await health(channel, service) == NOT_SERVING
        await world.server.set_serving(serving=True)
        assert await health(channel, service) == SERVING


async def test_before_it_is_told_health_says_not_serving(world: World) -> None:
    other = world.listeners()
    await other.start("localhost:0")
    try:
        world.server, first = other, world.server
        async with world.channel() as channel:
            assert await health(channel, "") == NOT_SERVING
        world.server = first
    finally:
        await other.stop(timedelta(0))


async def test_reflection_lists_the_services_and_describes_the_api(world: World) -> None:
    async with world.channel() as channel:
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await stream.read()).list_services_response.service}
        await stream.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE_NAME))
        encoded = (await stream.read()).file_descriptor_response.file_descriptor_proto
        await stream.done_writing()
    assert listed == {
        "istio.v1.auth.IstioCertificateService",
        "citadel.v1.IssuanceService",
        "citadel.v1.TrustService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = {file.name: file for file in map(FileDescriptorProto.FromString, encoded)}
    (service,) = files["istio/v1/auth/ca.proto"].service
    assert [method.name for method in service.method] == ["CreateCertificate"]


async def raw(channel: grpc.aio.Channel, method: str, message: bytes) -> bytes:
    """A call of anything with anything."""
    method_of_bytes: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method, _same, _same)
    return await method_of_bytes(message)


def _same(message: bytes) -> bytes:
    return message


async def test_an_unknown_method_is_unimplemented(world: World) -> None:
    async with world.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(channel, "/istio.v1.auth.IstioCertificateService/Other", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_text_in_the_place_of_a_message_is_an_error_of_the_call(world: World) -> None:
    async with world.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await raw(channel, f"/{SERVICE_NAME}/CreateCertificate", b"\xff\xff\xff")
        await call(channel, token=world.issuer.token())


async def test_an_address_that_is_taken_is_refused(world: World) -> None:
    other = world.listeners()
    with pytest.raises(Unavailable) as caught:
        await other.start(world.server.address)
    await other.stop(timedelta(0))
    assert caught.value.rule == "listen_failed"


async def test_too_many_requests_at_a_time_are_asked_to_come_back(world: World) -> None:
    world.in_flight.limit = 0
    async with world.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, token=world.issuer.token())
        refusal = read_refusal(caught.value)
        assert (refusal.code.name, refusal.reason) == ("UNAVAILABLE", "TOO_MANY_REQUESTS")
        assert refusal.retry_after is not None
        world.in_flight.limit = 1
        await call(channel, token=world.issuer.token())


async def test_what_is_in_the_works_is_counted_until_it_ends() -> None:
    in_flight = InFlight(1)
    async with in_flight.one():
        with pytest.raises(Unavailable):
            async with in_flight.one():
                pytest.fail("one is the limit")
    with pytest.raises(ZeroDivisionError):
        async with in_flight.one():
            raise ZeroDivisionError
    async with in_flight.one():
        pass


async def test_answers_and_refusals_that_are_held_back_leave_when_they_may() -> None:
    in_flight = InFlight(9)
    left: list[str] = []

    async def work(error: CitadelError | None) -> None:
        async with in_flight.one():
            if error:
                raise error
        left.append("answer")

    in_flight.hold()
    answer, refusal = asyncio.create_task(work(None)), asyncio.create_task(work(CitadelError("no")))
    await in_flight.quiet(patience=timedelta(seconds=10))
    assert not answer.done()
    assert not refusal.done()
    in_flight.release()
    await answer
    with pytest.raises(CitadelError):
        await refusal


async def test_quiet_is_not_waited_for_beyond_patience() -> None:
    in_flight = InFlight(1)

    async def keep_coming() -> None:
        while True:
            async with in_flight.one():
                await asyncio.sleep(0)

    traffic = asyncio.create_task(keep_coming())
    await in_flight.quiet(patience=timedelta(milliseconds=100))
    traffic.cancel()


class Gone:
    """The context of a call that nobody waits for any more."""

    def time_remaining(self) -> float:
        return 0.0


async def test_a_call_whose_deadline_has_passed_is_refused_before_any_work(world: World) -> None:
    with pytest.raises(Unavailable) as caught:
        await world.service.CreateCertificate(IstioCertificateRequest(csr=new_csr()), cast("Context", Gone()))
    assert caught.value.rule == "deadline_passed"
    assert not world.turnstile.arrived.is_set()


async def test_metadata_that_is_too_large_is_refused_before_it_is_read(world: World) -> None:
    async with world.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, token="x" * 40_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await call(channel, token=world.issuer.token(padding="x" * 10_000))


async def tcp(world: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("localhost", int(world.server.address.rpartition(":")[2]))


async def test_a_connection_that_never_begins_tls_is_closed(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = Limits(handshake=timedelta(milliseconds=100))
    async with World(tmp_path, token_key, limits=limits).running() as world, asyncio.timeout(10):
        reader, writer = await tcp(world)
        assert await reader.read() == b""
        writer.close()


async def test_idle_connections_are_closed(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = Limits(idle=timedelta(milliseconds=100))
    async with World(tmp_path, token_key, limits=limits).running() as world, asyncio.timeout(10):
        context = ssl.create_default_context(cadata=world.engine.issuer.bundle.to_pem().decode())
        context.set_alpn_protocols(["h2"])
        port = int(world.server.address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        await reader.read()
        writer.close()


async def test_connections_beyond_the_bound_are_turned_away(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = Limits(connections=2, handshake=timedelta(minutes=5))
    async with World(tmp_path, token_key, limits=limits).running() as world, asyncio.timeout(10):
        held = [await tcp(world) for _ in range(2)]
        reader, writer = await tcp(world)
        assert await reader.read() == b""
        for _, each in held:
            each.close()
        writer.close()


# ------------------------------------------------------------------------------------------------ the end


async def test_stopping_under_load_loses_no_request(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    """Each call that was begun ends in a certificate that is on record, or in a refusal that clients repeat."""
    world = World(tmp_path, token_key)
    await world.start()
    outcomes: Counter[str] = Counter()
    serials: set[str] = set()
    enough = asyncio.Event()

    async def client(channel: grpc.aio.Channel) -> None:
        while not outcomes["UNAVAILABLE"]:
            try:
                reply = await call(channel, token=world.issuer.token())
            except grpc.aio.AioRpcError as error:
                outcomes[error.code().name] += 1
            else:
                serials.add(world.verified(reply).serial)
                outcomes["OK"] += 1
                if outcomes["OK"] >= 50:
                    enough.set()

    async with world.channel() as one, world.channel() as other:
        clients = asyncio.gather(*(client(channel) for channel in (one, other) for _ in range(16)))
        await enough.wait()
        await world.server.stop(timedelta(seconds=20))
        await clients
    assert set(outcomes) == {"OK", "UNAVAILABLE"}
    assert serials <= {entry.serial for entry in world.issued()}
    assert len(world.issued()) == outcomes["OK"]
    world.ledger.close()


async def test_requests_in_the_works_are_finished_while_new_ones_are_refused(
    tmp_path: Path, token_key: rsa.RSAPrivateKey
) -> None:
    world = World(tmp_path, token_key)
    await world.start()
    world.turnstile.open.clear()
    async with world.channel() as channel:
        pending = call(channel, token=world.issuer.token())
        await world.turnstile.arrived.wait()
        stopping = asyncio.create_task(world.server.stop(timedelta(seconds=20)))
        await _until_nobody_listens(world)
        assert not stopping.done()
        world.turnstile.open.set()
        svid = world.verified(await pending)
        await stopping
    assert [entry.serial for entry in world.issued()] == [svid.serial]
    world.ledger.close()


async def _until_nobody_listens(world: World) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("localhost", int(world.server.address.rpartition(":")[2]))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.001)


async def test_those_who_watch_health_are_told_and_do_not_hold_up_the_end(
    tmp_path: Path, token_key: rsa.RSAPrivateKey
) -> None:
    world = World(tmp_path, token_key)
    await world.start()
    async with world.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        async with asyncio.timeout(10):
            await world.server.stop(timedelta(seconds=60))
        assert (await watch.read()).status == NOT_SERVING
    world.ledger.close()


async def test_what_does_not_end_is_cut_off_after_the_grace(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    world = World(tmp_path, token_key)
    await world.start()
    world.turnstile.open.clear()
    async with world.channel() as channel:
        pending = call(channel, token=world.issuer.token())
        await world.turnstile.arrived.wait()
        async with asyncio.timeout(10):
            await world.server.stop(timedelta(milliseconds=50))
        assert (await pending.code()) is not grpc.StatusCode.OK
    assert world.issued() == []
    world.ledger.close()
