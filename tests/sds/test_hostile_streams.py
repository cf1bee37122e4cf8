"""Streams that keep no rule: they get no more than others, fill neither log nor memory, and slow nobody."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

import grpc
import pytest
import structlog
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships .pyi files without py.typed

from citadel_py._proto.envoy.config.core.v3.base_pb2 import Node
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from citadel_py.core.secrets import CertificateSecret
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.hub import Hub

if TYPE_CHECKING:  # the name is in the .pyi alone
    from citadel_py._proto.envoy.service.secret.v3.sds_pb2_grpc import SecretDiscoveryServiceAsyncStub

CertificateMaker = Callable[[str], CertificateSecret]
DeltaCall: TypeAlias = "grpc.aio.StreamStreamCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]"
Hostile: TypeAlias = "Callable[[SecretDiscoveryServiceAsyncStub], Awaitable[None]]"

CHANGES = 20
WITHIN_S = 5.0  # for all changes; alone they take some milliseconds


async def never_answers(stub: SecretDiscoveryServiceAsyncStub) -> None:
    call = stub.StreamSecrets()
    await call.write(DiscoveryRequest(resource_names=["default"]))
    await asyncio.Event().wait()


async def answers_with_wrong_nonces(stub: SecretDiscoveryServiceAsyncStub) -> None:
    call = stub.StreamSecrets()
    for number in itertools.count():
        await call.write(DiscoveryRequest(resource_names=["default"], response_nonce=f"wrong-{number}"))


async def subscribes_in_a_loop(stub: SecretDiscoveryServiceAsyncStub) -> None:
    call = stub.StreamSecrets()
    for number in itertools.count():
        await call.write(DiscoveryRequest(resource_names=["default", f"name-{number % 50}"]))


async def refuses_everything(stub: SecretDiscoveryServiceAsyncStub) -> None:
    call = stub.DeltaSecrets()
    request = DeltaDiscoveryRequest(resource_names_subscribe=["default"])
    while True:
        await call.write(request)
        request = DeltaDiscoveryRequest(
            response_nonce=await nonce_of(call),
            error_detail=Status(code=13, message="no"),
            resource_names_unsubscribe=["default"],
            resource_names_subscribe=["default"],
        )


async def asks_again_and_again(stub: SecretDiscoveryServiceAsyncStub) -> None:
    call = stub.DeltaSecrets()
    nonce = ""
    while True:
        await call.write(DeltaDiscoveryRequest(resource_names_subscribe=["default"], response_nonce=nonce))
        nonce = await nonce_of(call)


async def nonce_of(call: DeltaCall) -> str:
    response = await call.read()
    assert isinstance(response, DeltaDiscoveryResponse)
    return response.nonce


async def calls_itself_by_a_long_name(stub: SecretDiscoveryServiceAsyncStub) -> None:
    call = stub.StreamSecrets()
    while True:
        await call.write(DiscoveryRequest(resource_names=["default"], node=Node(id="x" * 1_000_000)))


HOSTILE = [
    never_answers,
    answers_with_wrong_nonces,
    subscribes_in_a_loop,
    refuses_everything,
    asks_again_and_again,
    calls_itself_by_a_long_name,
]


@asynccontextmanager
async def besieged(stub: SecretDiscoveryServiceAsyncStub, hostile: Hostile) -> AsyncIterator[None]:
    """Several of them at once, for as long as the block."""

    async def attack() -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await hostile(stub)

    attacks = [asyncio.ensure_future(attack()) for _ in range(5)]
    try:
        yield
    finally:
        for each in attacks:
            each.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_a_client_that_keeps_the_rules_gets_every_change_in_time(
    hostile: Hostile,
    stub: SecretDiscoveryServiceAsyncStub,
    hub: Hub,
    certificate: CertificateMaker,
) -> None:
    hub.replace([certificate("0")])
    async with besieged(stub, hostile):
        call = stub.StreamSecrets()
        request = DiscoveryRequest(resource_names=["default"])
        async with asyncio.timeout(WITHIN_S):
            for number in range(1, CHANGES + 1):
                await call.write(request)
                response = await call.read()
                assert isinstance(response, DiscoveryResponse)
                request.version_info, request.response_nonce = response.version_info, response.nonce
                hub.replace([certificate(str(number))])
        call.cancel()


async def test_who_asks_again_and_again_does_not_fill_the_log(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, metrics: AgentMetrics
) -> None:
    hub.replace([certificate("one")])
    with structlog.testing.capture_logs() as log:
        async with besieged(stub, asks_again_and_again), asyncio.timeout(10):
            while (metrics.registry.get_sample_value("citadel_sds_acks_total") or 0) < 500:
                await asyncio.sleep(0)
    assert len([line for line in log if line["log_level"] != "debug"]) < 50
