"""Secrets, a server of SDS on a socket, and a client that speaks with the generated stubs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from citadel_py._proto.envoy.service.secret.v3 import sds_pb2_grpc
from citadel_py.core.bundle import Bundle
from citadel_py.core.keys import KeyType, generate_key
from citadel_py.core.profile import Validity, root_certificate
from citadel_py.core.secrets import CertificateSecret
from citadel_py.core.spiffe import TrustDomain
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.rpc import RpcInterceptor
from citadel_py.sds.hub import Hub
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import UnixAddress

if TYPE_CHECKING:  # the name is in the .pyi alone
    from citadel_py._proto.envoy.service.secret.v3.sds_pb2_grpc import SecretDiscoveryServiceAsyncStub

START = datetime(2026, 3, 4, tzinfo=UTC)

BundleMaker = Callable[[str], Bundle]


@pytest.fixture
def make_bundle() -> BundleMaker:
    def make(name: str) -> Bundle:
        trust_domain = TrustDomain(name)
        validity = Validity(START, START + timedelta(days=1))
        return Bundle(trust_domain, (root_certificate(generate_key(KeyType.P256), trust_domain, validity, serial=7),))

    return make


@pytest.fixture
def certificate() -> Callable[[str], CertificateSecret]:
    """A secret named `default` whose content is the argument."""
    return lambda content: CertificateSecret("default", content.encode(), b"key")


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def metrics() -> AgentMetrics:
    return AgentMetrics()


@pytest.fixture
def address(tmp_path: Path) -> UnixAddress:
    return UnixAddress.parse(f"unix:{tmp_path}/run/sds.sock")


@pytest.fixture
async def server(address: UnixAddress, hub: Hub, metrics: AgentMetrics) -> AsyncIterator[SecretServer]:
    interceptor = RpcInterceptor(metrics, uniform=lambda: 0.5)
    server = SecretServer(address, hub, metrics, interceptors=(interceptor,), max_streams=10)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def stub(server: SecretServer, address: UnixAddress) -> AsyncIterator[SecretDiscoveryServiceAsyncStub]:
    assert server.is_listening
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address.target))
        yield sds_pb2_grpc.SecretDiscoveryServiceStub(channel)
