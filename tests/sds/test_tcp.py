"""SDS over TCP: who gets in, who gets keys, and that renewals reach both."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509

from citadel_py._proto.envoy.config.core.v3.base_pb2 import Node
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from citadel_py._proto.envoy.service.secret.v3 import sds_pb2_grpc
from citadel_py.core.errors import Unavailable
from citadel_py.core.keys import private_key_pem
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.rpc import RpcInterceptor
from citadel_py.sds.audience import Audience
from citadel_py.sds.evidence import Evidence
from citadel_py.sds.names import secrets_of
from citadel_py.sds.tcp import Limits, TcpSecretServer
from citadel_py.sds.tls import ServingSVID
from tests.envoy.support import CLIENT, SERVER, TD, Signer, tls_client

if TYPE_CHECKING:  # the name is in the .pyi alone
    from pathlib import Path

    from citadel_py._proto.envoy.service.secret.v3.sds_pb2_grpc import SecretDiscoveryServiceAsyncStub

KEYS_TO = SpiffeID(TD, "/gateway")
Dial = Callable[[HeldSVID], "SecretDiscoveryServiceAsyncStub"]


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def held(signer: Signer) -> HeldSVID:
    """With a name beside its ID: clients that are no Envoys compare names."""
    return signer.mint(SERVER, dns=("localhost",))


@pytest.fixture
def audience(held: HeldSVID) -> Audience:
    audience = Audience([KEYS_TO])
    audience.replace(secrets_of(held))
    audience.explain({})
    return audience


class Clock:
    """The wall clock, moved."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def serving(held: HeldSVID, clock: Clock) -> ServingSVID:
    serving = ServingSVID(clock.now)
    serving.replace(held)
    return serving


@pytest.fixture
def evidence() -> Evidence:
    return Evidence(lambda: 0.0)


def new_server(
    audience: Audience, serving: ServingSVID, evidence: Evidence, *, limits: Limits | None = None
) -> TcpSecretServer:
    metrics = AgentMetrics()
    interceptor = RpcInterceptor(metrics, uniform=lambda: 0.5)
    return TcpSecretServer(
        "127.0.0.1:0", audience, serving, metrics, interceptors=[interceptor], evidence=evidence, limits=limits
    )


@pytest.fixture
async def server(audience: Audience, serving: ServingSVID, evidence: Evidence) -> AsyncIterator[TcpSecretServer]:
    server = new_server(audience, serving, evidence)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def dial(server: TcpSecretServer, signer: Signer) -> AsyncIterator[Dial]:
    """A client with this certificate, which expects the server's."""
    async with AsyncExitStack() as stack:
        channels: list[grpc.aio.Channel] = []

        def connect(client: HeldSVID) -> SecretDiscoveryServiceAsyncStub:
            credentials = grpc.ssl_channel_credentials(
                signer.bundle.to_pem(), private_key_pem(client.key), client.svid.chain_pem()
            )
            channels.append(channel := grpc.aio.secure_channel(server.address, credentials, options=OPTIONS))
            return sds_pb2_grpc.SecretDiscoveryServiceStub(channel)

        stack.push_async_callback(close_all, channels)
        yield connect


OPTIONS = (("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1))


async def close_all(channels: list[grpc.aio.Channel]) -> None:
    for channel in channels:
        await channel.close()


async def fetch(stub: SecretDiscoveryServiceAsyncStub, *names: str) -> list[str]:
    """Type names of what there is under these names."""
    response = await stub.FetchSecrets(DiscoveryRequest(resource_names=names), timeout=20)
    return [bytes(each.value).decode("latin-1") for each in response.resources]


async def code_of(stub: SecretDiscoveryServiceAsyncStub, *names: str) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fetch(stub, *names)
    return failed.value.code()


async def test_a_peer_of_the_trust_domain_gets_bundles_and_no_key(dial: Dial, signer: Signer) -> None:
    stub = dial(signer.mint(CLIENT))
    (bundle,) = await fetch(stub, "ROOTCA", "default", str(SERVER))
    assert "PRIVATE KEY" not in bundle
    assert await code_of(stub, "default") is await code_of(stub, "nobody") is grpc.StatusCode.UNAVAILABLE


async def test_the_agents_own_identity_alone_is_no_reason_to_get_its_key(dial: Dial, signer: Signer) -> None:
    assert await code_of(dial(signer.mint(SERVER)), "default") is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_that_may_have_keys_gets_them(dial: Dial, signer: Signer, held: HeldSVID) -> None:
    (certificate,) = await fetch(dial(signer.mint(KEYS_TO)), "default")
    assert private_key_pem(held.key).decode() in certificate


async def test_what_a_peer_says_its_name_is_gives_it_nothing(dial: Dial, signer: Signer) -> None:
    stub = dial(signer.mint(CLIENT))
    request = DiscoveryRequest(resource_names=["default"], node=Node(id=str(KEYS_TO)))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.FetchSecrets(request, timeout=20)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_name_that_a_peer_may_not_have_leaves_its_stream_open_and_silent(
    dial: Dial, signer: Signer, evidence: Evidence
) -> None:
    call = dial(signer.mint(CLIENT)).StreamSecrets(timeout=20)
    await call.write(DiscoveryRequest(resource_names=["default"], node=Node(id="proxy-1")))
    await call.write(DiscoveryRequest(resource_names=["default", "ROOTCA"]))
    response = await call.read()
    assert isinstance(response, DiscoveryResponse)
    assert len(response.resources) == 1
    (key, bundle) = sorted(evidence.snapshot(), key=lambda state: state.resource == "ROOTCA")
    assert (key.peer, key.node, key.acknowledged) == (str(CLIENT), "proxy-1", None)
    assert "not one of those" in (key.withheld or "")
    assert bundle.withheld is None


@pytest.mark.parametrize("who", ["nobody", "a stranger", "another trust domain"])
async def test_who_is_not_of_the_trust_domain_does_not_get_in(
    who: str, server: TcpSecretServer, tmp_path: Path
) -> None:
    other = Signer(TrustDomain("other.test"))
    clients = {"nobody": None, "a stranger": Signer().mint(CLIENT), "another trust domain": other.mint(CLIENT)}
    context = tls_client(tmp_path, clients[who])
    context.set_alpn_protocols(["h2"])
    host, _, port = server.address.rpartition(":")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(host, int(port), ssl=context)


async def test_a_peer_whose_certificate_is_no_svid_is_not_heard(dial: Dial, signer: Signer) -> None:
    """TLS lets it in: its chain is good, and only its name is not of our trust domain."""
    stub = dial(signer.mint(SpiffeID.parse("spiffe://other.test/client")))
    assert await code_of(stub, "ROOTCA") is grpc.StatusCode.UNAUTHENTICATED


async def test_a_certificate_that_has_ended_opens_no_stream_on_a_connection_that_is_open(
    dial: Dial, signer: Signer, clock: Clock
) -> None:
    stub = dial(signer.mint(CLIENT))
    assert await fetch(stub, "ROOTCA")
    clock.ahead = timedelta(hours=2)
    assert await code_of(stub, "ROOTCA") is grpc.StatusCode.UNAUTHENTICATED


async def test_the_next_handshake_has_the_renewed_certificate_and_the_new_bundle(
    dial: Dial, signer: Signer, serving: ServingSVID, held: HeldSVID, server: TcpSecretServer
) -> None:
    new = Signer()
    renewed = signer.mint(SERVER, dns=("localhost",))
    both = signer.bundle.with_authorities((*signer.bundle.authorities, *new.bundle.authorities))
    assert await serial_of(server) == held.svid.leaf.serial_number
    serving.replace(replace(renewed, bundle=both))
    assert await serial_of(server) == renewed.svid.leaf.serial_number
    assert await fetch(dial(new.mint(CLIENT)), "ROOTCA")


async def serial_of(server: TcpSecretServer) -> int:
    host, _, port = server.address.rpartition(":")
    pem = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def test_streams_end_with_the_age_of_their_connection_and_the_next_connection_is_served(
    audience: Audience, serving: ServingSVID, evidence: Evidence, signer: Signer
) -> None:
    limits = Limits(age=timedelta(milliseconds=100), age_grace=timedelta(milliseconds=100))
    server = new_server(audience, serving, evidence, limits=limits)
    await server.start()
    client = signer.mint(CLIENT)
    credentials = grpc.ssl_channel_credentials(
        signer.bundle.to_pem(), private_key_pem(client.key), client.svid.chain_pem()
    )
    async with grpc.aio.secure_channel(server.address, credentials, options=OPTIONS) as channel:
        stub = sds_pb2_grpc.SecretDiscoveryServiceStub(channel)
        call = stub.StreamSecrets(timeout=20)
        await call.write(DiscoveryRequest(resource_names=["ROOTCA"]))
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        assert await fetch(stub, "ROOTCA")
    await server.stop()


async def test_it_listens_when_the_first_certificate_comes(
    audience: Audience, clock: Clock, held: HeldSVID, evidence: Evidence
) -> None:
    serving = ServingSVID(clock.now)
    server = new_server(audience, serving, evidence)
    starting = asyncio.create_task(server.start())
    await asyncio.sleep(0)
    assert not starting.done()
    serving.replace(held)
    await starting
    assert server.is_listening
    await server.stop()


async def test_an_address_that_is_taken_is_said(
    server: TcpSecretServer, audience: Audience, serving: ServingSVID
) -> None:
    second = TcpSecretServer(server.address, audience, serving, AgentMetrics())
    with pytest.raises(Unavailable) as caught:
        await second.start()
    assert caught.value.rule == "listen_failed"


async def test_who_says_nothing_is_sent_away(audience: Audience, serving: ServingSVID, evidence: Evidence) -> None:
    async with limited(audience, serving, evidence, Limits(handshake=timedelta(milliseconds=100))) as address:
        assert await is_sent_away(address)


async def test_whoever_comes_when_it_is_full_is_sent_away(
    audience: Audience, serving: ServingSVID, evidence: Evidence
) -> None:
    limits = Limits(handshake=timedelta(minutes=5), connections=1)
    async with limited(audience, serving, evidence, limits) as address:
        _, first = await asyncio.open_connection(*address)
        assert await is_sent_away(address)
        first.close()
        await first.wait_closed()


@asynccontextmanager
async def limited(
    audience: Audience, serving: ServingSVID, evidence: Evidence, limits: Limits
) -> AsyncIterator[tuple[str, int]]:
    server = new_server(audience, serving, evidence, limits=limits)
    await server.start()
    host, _, port = server.address.rpartition(":")
    try:
        yield host, int(port)
    finally:
        await server.stop()


async def is_sent_away(address: tuple[str, int]) -> bool:
    """A connection on which nothing is said ends, before the timeout."""
    reader, writer = await asyncio.open_connection(*address)
    async with asyncio.timeout(10):
        with suppress(ConnectionError):
            while await reader.read(1024):
                pass
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return True
