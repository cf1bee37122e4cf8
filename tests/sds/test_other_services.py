"""Incremental SDS and the aggregated service over a real Unix socket, with gRPC's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypeAlias

import grpc
import pytest
import structlog
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships .pyi files without py.typed

from citadel_py._proto.envoy.config.core.v3.base_pb2 import Node
from citadel_py._proto.envoy.service.discovery.v3 import ads_pb2_grpc
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from citadel_py.core.secrets import CertificateSecret
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.encoding import SECRET_TYPE_URL
from citadel_py.sds.hub import Hub
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import UnixAddress

if TYPE_CHECKING:  # the names are in the .pyi alone
    from citadel_py._proto.envoy.service.discovery.v3.ads_pb2_grpc import AggregatedDiscoveryServiceAsyncStub
    from citadel_py._proto.envoy.service.secret.v3.sds_pb2_grpc import SecretDiscoveryServiceAsyncStub

DeltaCall: TypeAlias = "grpc.aio.StreamStreamCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]"
CertificateMaker = Callable[[str], CertificateSecret]

CLUSTERS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"


@pytest.fixture
async def aggregated(server: SecretServer, address: UnixAddress) -> AsyncIterator[AggregatedDiscoveryServiceAsyncStub]:
    assert server.is_listening
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address.target))
        yield ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)


async def subscribe(stub: SecretDiscoveryServiceAsyncStub, *names: str, **versions: str) -> DeltaCall:
    call = stub.DeltaSecrets(timeout=20)
    node = Node(id="proxy-1")
    await call.write(
        DeltaDiscoveryRequest(resource_names_subscribe=names, initial_resource_versions=versions, node=node)
    )
    return call


async def receive(call: DeltaCall) -> DeltaDiscoveryResponse:
    response = await call.read()
    assert isinstance(response, DeltaDiscoveryResponse)
    return response


def content(response: DeltaDiscoveryResponse) -> bytes:
    (resource,) = response.resources
    return resource.resource.value


async def test_an_incremental_client_gets_each_change_with_its_name_and_version(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    call = await subscribe(stub, "default")
    first = await receive(call)
    assert first.type_url == SECRET_TYPE_URL
    assert first.system_version_info == first.resources[0].version == certificate("one").version
    assert first.resources[0].name == "default"
    await call.write(DeltaDiscoveryRequest(response_nonce=first.nonce))
    hub.replace([certificate("two")])
    assert b"two" in content(await receive(call))


async def test_an_incremental_client_that_returns_is_sent_only_what_comes_next(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    call = await subscribe(stub, "default", default=certificate("one").version)
    await receive(await subscribe(stub, "default"))  # by now the first stream has had its turn
    hub.replace([certificate("two")])
    assert b"two" in content(await receive(call))


async def test_an_incremental_client_that_refuses_gets_the_last_good_secret(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, metrics: AgentMetrics
) -> None:
    hub.replace([certificate("good")])
    call = await subscribe(stub, "default")
    await call.write(DeltaDiscoveryRequest(response_nonce=(await receive(call)).nonce))
    hub.replace([certificate("bad")])
    bad = await receive(call)
    await call.write(DeltaDiscoveryRequest(response_nonce=bad.nonce, error_detail=Status(code=13, message="no")))
    assert b"good" in content(await receive(call))
    assert b"citadel_sds_nacks_total 1.0" in metrics.exposition()


async def test_an_incremental_client_is_told_of_a_name_that_is_withdrawn(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one"), CertificateSecret("other", b"chain", b"key")])
    call = await subscribe(stub, "default", "other")
    await call.write(DeltaDiscoveryRequest(response_nonce=(await receive(call)).nonce))
    hub.withdraw(["other", "nobody"])
    assert list((await receive(call)).removed_resources) == ["other"]
    assert set(hub.snapshot) == {"default"}


async def test_why_a_name_is_withheld_is_told(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    with structlog.testing.capture_logs() as log:
        call = await subscribe(stub, "default", "kubernetes://shop/tls", "file-root:/etc/ca.pem", "*")
        assert b"one" in content(await receive(call))
    (line,) = [line for line in log if line["event"] == "sds.withheld"]
    assert line["names"] == ("kubernetes://shop/tls", "file-root:/etc/ca.pem", "*")
    assert [word for reason in line["reasons"] for word in ("Kubernetes", "files", "names them") if word in reason] == [
        "Kubernetes",
        "files",
        "names them",
    ]


async def test_another_type_gets_silence_on_an_aggregated_stream_and_hurts_no_secret(
    aggregated: AggregatedDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    with structlog.testing.capture_logs() as log:
        call = aggregated.StreamAggregatedResources(timeout=20)
        for _ in range(3):
            await call.write(DiscoveryRequest(type_url=CLUSTERS, node=Node(id="proxy-1")))
        await call.write(DiscoveryRequest(type_url=SECRET_TYPE_URL, resource_names=["default"]))
        response = await call.read()
        assert isinstance(response, DiscoveryResponse)
        assert (response.type_url, response.nonce) == (SECRET_TYPE_URL, "1")
    (line,) = [line for line in log if line["event"] == "sds.type_ignored"]
    assert (line["node"], line["type_url"]) == ("proxy-1", CLUSTERS)


async def test_two_secrets_of_an_aggregated_stream_that_starts_in_steps_both_arrive(
    aggregated: AggregatedDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    """Envoy learns of its secrets one after the other, and asks again before it has seen an answer."""
    hub.replace([certificate("one"), CertificateSecret("ROOTCA", b"root", b"key")])
    call = aggregated.StreamAggregatedResources(timeout=20)
    await call.write(DiscoveryRequest(type_url=SECRET_TYPE_URL, resource_names=["default"]))
    await call.write(DiscoveryRequest(type_url=SECRET_TYPE_URL, resource_names=["ROOTCA", "default"]))
    seen: list[bytes] = []
    while len(seen) < 2:
        response = await call.read()
        assert isinstance(response, DiscoveryResponse)
        seen = [resource.value for resource in response.resources]
        await call.write(
            DiscoveryRequest(
                type_url=SECRET_TYPE_URL,
                resource_names=["ROOTCA", "default"],
                version_info=response.version_info,
                response_nonce=response.nonce,
            )
        )
    assert any(b"one" in value for value in seen)
    assert any(b"root" in value for value in seen)


async def test_an_aggregated_stream_may_be_incremental(
    aggregated: AggregatedDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    call = aggregated.DeltaAggregatedResources(timeout=20)
    await call.write(DeltaDiscoveryRequest(type_url=CLUSTERS, resource_names_subscribe=["default"]))
    await call.write(DeltaDiscoveryRequest(type_url=SECRET_TYPE_URL, resource_names_subscribe=["default"]))
    assert b"one" in content(await receive(call))
