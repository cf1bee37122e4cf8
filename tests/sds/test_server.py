"""SDS over a real Unix socket, with gRPC's own client."""

from __future__ import annotations

import asyncio
import gc
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import grpc
import pytest
import structlog
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships .pyi files without py.typed
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from citadel_py._proto.envoy.config.core.v3.base_pb2 import Node
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import (
    DiscoveryRequest,
    DiscoveryResponse,
)
from citadel_py.core.errors import InvalidConfiguration, Unavailable
from citadel_py.core.secrets import CertificateSecret
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.hub import Hub
from citadel_py.sds.received import Received
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import Access, UnixAddress

if TYPE_CHECKING:  # the name is in the .pyi alone
    from citadel_py._proto.envoy.service.secret.v3.sds_pb2_grpc import SecretDiscoveryServiceAsyncStub

Call: TypeAlias = "grpc.aio.StreamStreamCall[DiscoveryRequest, DiscoveryResponse]"  # generic in the stubs only
CertificateMaker = Callable[[str], CertificateSecret]


async def subscribe(stub: SecretDiscoveryServiceAsyncStub, *names: str, version: str = "") -> Call:
    call = stub.StreamSecrets(timeout=20)
    await call.write(DiscoveryRequest(resource_names=names, version_info=version, node=Node(id="proxy-1")))
    return call


async def receive(call: Call) -> DiscoveryResponse:
    response = await call.read()
    assert isinstance(response, DiscoveryResponse)
    return response


async def acknowledge(call: Call, response: DiscoveryResponse, name: str = "default") -> None:
    await call.write(
        DiscoveryRequest(resource_names=[name], version_info=response.version_info, response_nonce=response.nonce)
    )


def content(response: DiscoveryResponse) -> bytes:
    (resource,) = response.resources
    return resource.value


async def failure(call: Call | grpc.aio.UnaryUnaryCall[DiscoveryRequest, DiscoveryResponse]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else call.read())
    return failed.value


async def test_a_secret_is_pushed_and_pushed_again_when_it_changes(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    call = await subscribe(stub, "default")
    first = await receive(call)
    assert b"one" in content(first)
    await acknowledge(call, first)
    hub.replace([certificate("two")])
    assert b"two" in content(await receive(call))


async def test_a_secret_that_is_not_there_yet_is_answered_when_it_comes(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    known, unknown = await subscribe(stub, "default"), await subscribe(stub, "other")
    hub.replace([certificate("one")])
    assert b"one" in content(await receive(known))
    hub.replace([CertificateSecret("other", b"late", b"key")])
    assert b"late" in content(await receive(unknown))


async def test_a_refused_secret_is_followed_by_the_last_good_one(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, metrics: AgentMetrics
) -> None:
    hub.replace([certificate("good")])
    call = await subscribe(stub, "default")
    await acknowledge(call, good := await receive(call))
    hub.replace([certificate("bad")])
    bad = await receive(call)
    await call.write(
        DiscoveryRequest(
            resource_names=["default"],
            version_info=good.version_info,
            response_nonce=bad.nonce,
            error_detail=Status(code=13, message="no"),
        )
    )
    assert b"good" in content(await receive(call))
    assert b"citadel_sds_nacks_total 1.0" in metrics.exposition()


async def test_nothing_is_kept_of_a_request_while_the_next_one_is_awaited(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    """A node has 60 KB, and the text of a refusal can hold a private key."""
    hub.replace([certificate("one")])
    call = await subscribe(stub, "default")
    await receive(call)
    await acknowledge(call, DiscoveryResponse(version_info=certificate("one").version, nonce="1"))
    hub.replace([certificate("two")])
    await receive(call)
    assert not [each for each in gc.get_objects() if isinstance(each, Received)]


async def test_a_client_that_returns_with_the_current_version_is_sent_only_what_comes_next(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    call = await subscribe(stub, "default", version=certificate("one").version)
    other = await subscribe(stub, "default")
    await receive(other)  # by now the first stream has had its turn
    hub.replace([certificate("two")])
    assert b"two" in content(await receive(call))


async def test_streams_end_at_once_when_the_server_stops(
    stub: SecretDiscoveryServiceAsyncStub, server: SecretServer, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    calls = [await subscribe(stub, "default"), await subscribe(stub, "nobody")]
    await receive(calls[0])
    async with asyncio.timeout(1):  # the grace is 2 s: they do not use it up
        await server.stop()
    for call in calls:
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_that_the_client_ends_is_over(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, metrics: AgentMetrics
) -> None:
    hub.replace([certificate("one")])
    call = await subscribe(stub, "default")
    await receive(call)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert b"citadel_sds_streams 0.0" in metrics.exposition()


async def test_a_client_that_breaks_off_leaves_nothing_behind(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, metrics: AgentMetrics
) -> None:
    hub.replace([certificate("one")])
    call = await subscribe(stub, "default")
    await receive(call)
    call.cancel()
    async with asyncio.timeout(5):
        while b"citadel_sds_streams 0.0" not in metrics.exposition():
            await asyncio.sleep(0)


async def test_another_type_of_resource_is_refused(stub: SecretDiscoveryServiceAsyncStub) -> None:
    call = stub.StreamSecrets(timeout=20)
    await call.write(DiscoveryRequest(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster"))
    assert (await failure(call)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_fetch_answers_once_with_what_there_is(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    response = await stub.FetchSecrets(DiscoveryRequest(resource_names=["default", "nobody"]), timeout=20)
    assert b"one" in content(response)
    assert response.version_info == certificate("one").version


async def test_fetch_of_what_is_not_there_says_so(stub: SecretDiscoveryServiceAsyncStub) -> None:
    error = await failure(stub.FetchSecrets(DiscoveryRequest(resource_names=["nobody"]), timeout=20))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_streams_beyond_the_limit_are_refused_and_the_others_live_on(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    calls = [await subscribe(stub, "default") for _ in range(10)]
    for call in calls:
        await receive(call)
    one_too_many = stub.StreamSecrets(timeout=20)
    assert (await failure(one_too_many)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await acknowledge(calls[0], DiscoveryResponse(version_info=certificate("one").version, nonce="1"))
    hub.replace([certificate("two")])
    assert b"two" in content(await receive(calls[0]))


async def test_a_message_that_is_too_large_ends_its_stream_only(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    hostile = stub.StreamSecrets(timeout=20)
    await hostile.write(DiscoveryRequest(node=Node(id="x" * (2 << 20))))
    assert (await failure(hostile)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert b"one" in content(await receive(await subscribe(stub, "default")))


async def test_what_is_logged_of_a_hostile_request_is_bounded(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    names = ["default", *(f"{number}\n" * 100 for number in range(200))]
    with structlog.testing.capture_logs() as log:
        call = stub.StreamSecrets(timeout=20)
        await call.write(DiscoveryRequest(resource_names=names, node=Node(id="\x1b[2J" * 1000)))
        await receive(call)
    assert {line["event"] for line in log} >= {"sds.stream_opened", "sds.withheld"}
    assert len(repr(log)) < 20_000
    assert all("\x1b" not in str(line["node"]) for line in log)


async def test_the_socket_lets_owner_and_group_in_and_is_gone_afterwards(
    server: SecretServer, address: UnixAddress
) -> None:
    assert stat.S_IMODE(address.path.stat().st_mode) == 0o660
    await server.stop()
    assert list(address.path.parent.iterdir()) == []
    assert not server.is_listening


async def test_a_second_server_leaves_a_live_one_alone(
    server: SecretServer, address: UnixAddress, stub: SecretDiscoveryServiceAsyncStub, hub: Hub, metrics: AgentMetrics,
    certificate: CertificateMaker,
) -> None:  # fmt: skip
    second = SecretServer(address, Hub(), metrics)
    with pytest.raises(Unavailable):
        await second.start()
    await second.stop()
    assert server.is_listening
    hub.replace([certificate("one")])
    assert b"one" in content(await receive(await subscribe(stub, "default")))


async def test_a_mode_that_is_too_open_leaves_no_socket_behind(
    address: UnixAddress, hub: Hub, metrics: AgentMetrics
) -> None:
    server = SecretServer(address, hub, metrics, access=Access(0o666))
    with pytest.raises(InvalidConfiguration):
        await server.start()
    assert not server.is_listening
    assert list(address.path.parent.iterdir()) == []


async def test_what_is_served_can_be_asked_for(server: SecretServer, address: UnixAddress) -> None:
    assert server.is_listening
    async with grpc.aio.insecure_channel(address.target) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=20)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        response = await call.read()
        call.cancel()
    assert {each.name for each in response.list_services_response.service} == {
        "envoy.service.secret.v3.SecretDiscoveryService",
        "envoy.service.discovery.v3.AggregatedDiscoveryService",
        "grpc.reflection.v1alpha.ServerReflection",
    }
