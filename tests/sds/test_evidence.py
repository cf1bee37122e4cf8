"""The table of what proxies have: fed by real streams, and by made-up ones for time and bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import grpc
import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships .pyi files without py.typed

from citadel_py._proto.envoy.config.core.v3.base_pb2 import Node
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from citadel_py._proto.envoy.service.secret.v3 import sds_pb2_grpc
from citadel_py.core.secrets import CertificateSecret
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.evidence import MAX_NAMES, Evidence, ProxyState, document
from citadel_py.sds.hub import Hub
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import UnixAddress

if TYPE_CHECKING:  # the name is in the .pyi alone
    from citadel_py._proto.envoy.service.secret.v3.sds_pb2_grpc import SecretDiscoveryServiceAsyncStub

Call: TypeAlias = "grpc.aio.StreamStreamCall[DiscoveryRequest, DiscoveryResponse]"
DeltaCall: TypeAlias = "grpc.aio.StreamStreamCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]"
CertificateMaker = Callable[[str], CertificateSecret]

NODE = Node(id="proxy-1")


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def evidence(clock: Clock) -> Evidence:
    return Evidence(clock)


@pytest.fixture
async def stub(address: UnixAddress, hub: Hub, evidence: Evidence) -> AsyncIterator[SecretDiscoveryServiceAsyncStub]:
    server = SecretServer(address, hub, AgentMetrics(), evidence=evidence)
    async with AsyncExitStack() as stack:
        await server.start()
        stack.push_async_callback(server.stop)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address.target))
        yield sds_pb2_grpc.SecretDiscoveryServiceStub(channel)


async def until(evidence: Evidence, expected: Callable[[tuple[ProxyState, ...]], bool]) -> tuple[ProxyState, ...]:
    """The table, as soon as it is as expected."""
    async with asyncio.timeout(10):
        with evidence.listen() as changed:
            while not expected(states := evidence.snapshot()):
                await changed.wait()
                changed.clear()
    return states


async def subscribe(stub: SecretDiscoveryServiceAsyncStub, *names: str, version: str = "") -> Call:
    call = stub.StreamSecrets(timeout=20)
    await call.write(DiscoveryRequest(resource_names=names, version_info=version, node=NODE))
    return call


async def answer(call: Call, *, error: str = "", accepted: str = "") -> str:
    """Take or refuse what comes next; its version."""
    response = await call.read()
    assert isinstance(response, DiscoveryResponse)
    request = DiscoveryRequest(resource_names=["default"], response_nonce=response.nonce)
    request.version_info = accepted if error else response.version_info
    if error:
        request.error_detail.CopyFrom(Status(code=13, message=error))
    await call.write(request)
    return response.version_info


async def test_what_a_proxy_acknowledges_is_in_it(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, evidence: Evidence,
    address: UnixAddress,
) -> None:  # fmt: skip
    hub.replace([certificate("one")])
    version = await answer(await subscribe(stub, "default"))
    (state,) = await until(evidence, lambda states: any(state.acknowledged for state in states))
    assert state == ProxyState(str(address), "proxy-1", "", "default", acknowledged=version)


async def test_what_a_proxy_refuses_is_in_it_until_there_is_something_else_and_its_words_are_not(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, evidence: Evidence
) -> None:
    hub.replace([certificate("good")])
    call = await subscribe(stub, "default")
    good = await answer(call)
    hub.replace([certificate("bad")])
    bad = await answer(call, error="-----BEGIN PRIVATE KEY-----", accepted=good)
    (state,) = await until(evidence, lambda states: any(state.rejected for state in states))
    assert (state.acknowledged, state.rejected) == (good, bad)
    assert "PRIVATE" not in repr(document(evidence))
    await answer(call)  # the good one, again
    hub.replace([certificate("better")])
    better = await answer(call)
    (state,) = await until(evidence, lambda states: states[0].acknowledged == better)
    assert state.rejected is None


async def test_what_a_returning_proxy_says_it_holds_counts(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, evidence: Evidence
) -> None:
    hub.replace([certificate("one")])
    held = certificate("one").version
    await subscribe(stub, "default", version=held)
    (state,) = await until(evidence, lambda states: len(states) == 1)
    assert state.acknowledged == held


async def test_an_incremental_proxy_is_in_it_name_by_name(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, evidence: Evidence
) -> None:
    hub.replace([certificate("one")])
    call: DeltaCall = stub.DeltaSecrets(timeout=20)
    await call.write(DeltaDiscoveryRequest(resource_names_subscribe=["default", "late"], node=NODE))
    response = await call.read()
    assert isinstance(response, DeltaDiscoveryResponse)
    await call.write(DeltaDiscoveryRequest(response_nonce=response.nonce))
    default, late = await until(evidence, lambda states: any(state.acknowledged for state in states))
    assert (default.resource, default.acknowledged) == ("default", certificate("one").version)
    assert (late.resource, late.acknowledged) == ("late", None)
    assert late.withheld == "no secret has this name (yet)"


async def test_why_a_secret_is_withheld_is_in_it(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, evidence: Evidence
) -> None:
    hub.explain({"ROOTCA": "there are no current revocation lists"})
    await subscribe(stub, "ROOTCA")
    (state,) = await until(evidence, lambda states: len(states) == 1)
    assert state.withheld == "there are no current revocation lists"


async def test_a_proxy_that_has_gone_stays_a_while_and_its_return_counts_at_once(
    stub: SecretDiscoveryServiceAsyncStub, hub: Hub, certificate: CertificateMaker, evidence: Evidence, clock: Clock
) -> None:
    hub.replace([certificate("one")])
    call = await subscribe(stub, "default")
    version = await answer(call)
    await until(evidence, lambda states: any(state.acknowledged for state in states))
    await call.done_writing()
    (gone,) = await until(evidence, lambda states: states[0].streams == 0)
    assert gone.acknowledged == version
    await subscribe(stub, "default")
    (back,) = await until(evidence, lambda states: states[0].streams == 1)
    assert back.acknowledged is None
    clock.now_s = 31
    assert evidence.snapshot() == (back,)


# ------------------------------------------------------------------------------------------- made-up streams


class Made:
    """A stream with these states."""

    def __init__(self, *states: ProxyState) -> None:
        self._states = states

    def states(self) -> Iterator[ProxyState]:
        yield from self._states


STATE = ProxyState("unix:/sds.sock", "proxy", "", "ROOTCA", acknowledged="2")


def test_a_proxy_has_what_all_of_its_streams_have(evidence: Evidence) -> None:
    behind = replace(STATE, acknowledged="1", rejected="2")
    with evidence.follow(Made(STATE)), evidence.follow(Made(STATE)):
        assert evidence.snapshot() == (replace(STATE, streams=2),)
        with evidence.follow(Made(behind)):
            assert evidence.snapshot() == (replace(STATE, acknowledged=None, rejected="2", streams=3),)


def test_equal_names_at_other_sockets_or_with_other_proven_ids_are_other_proxies(evidence: Evidence) -> None:
    others = [STATE, replace(STATE, via="unix:/other.sock"), replace(STATE, peer="spiffe://example.org/a")]
    with evidence.follow(Made(*others)):
        assert set(evidence.snapshot()) == set(others)


def test_who_does_not_come_back_is_forgotten(evidence: Evidence, clock: Clock) -> None:
    with evidence.follow(Made(STATE)):
        pass
    clock.now_s = 29.9
    assert evidence.snapshot() == (replace(STATE, streams=0),)
    clock.now_s = 30
    assert evidence.snapshot() == ()


def test_the_table_has_a_bound_and_says_what_it_leaves_out(clock: Clock) -> None:
    evidence = Evidence(clock, max_states=3)
    states = [replace(STATE, node=f"proxy-{number}") for number in range(5)]
    with evidence.follow(Made(*states)):
        assert [state.node for state in evidence.snapshot()] == ["proxy-0", "proxy-1", "proxy-2"]
        assert document(evidence)["omitted"] == 2
    assert len(evidence.snapshot()) == 3


async def test_one_stream_cannot_fill_it(stub: SecretDiscoveryServiceAsyncStub, evidence: Evidence) -> None:
    await subscribe(stub, *(f"name-{number}" for number in range(1000)))
    states = await until(evidence, lambda states: len(states) > 0)
    assert len(states) == MAX_NAMES
