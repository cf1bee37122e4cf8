"""Real Envoys for a test, with everything that they need; all of it ends with the test."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import aiohttp
import grpc
import pytest
import structlog

from citadel_py.agent.envoy_proxy import RemoteAgent
from citadel_py.config import parse_address
from citadel_py.core.ports import HeldSVID
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.audience import Audience
from citadel_py.sds.hub import Hub
from citadel_py.sds.names import secrets_of
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import UnixAddress
from citadel_py.sds.tcp import TcpSecretServer
from citadel_py.sds.tls import ServingSVID
from demo_parts.children import Children
from demo_parts.envoys import EnvoyStarter
from tests.envoy.support import (
    AGENT,
    CLIENT,
    SERVER,
    CarelessServer,
    Pair,
    Signer,
    start_client,
    start_server,
    write_credentials,
)

ServeSDS: TypeAlias = Callable[[HeldSVID], Awaitable[tuple[Hub, Path]]]
ServeTCP: TypeAlias = Callable[[HeldSVID], Awaitable[tuple[Audience, RemoteAgent]]]


@pytest.fixture(autouse=True)
def _log_beside_stdout() -> Iterator[None]:
    """Servers log while a command of the same process prints its answer: the two do not share a stream."""
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.configure(**before)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: a Unix socket's path has few bytes, and pytest's are long."""
    with tempfile.TemporaryDirectory(prefix="citadel-") as path:
        yield Path(path)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


@pytest.fixture
async def children(place: Path) -> AsyncIterator[Children]:
    """Processes that work in `place`; the test fails if one died by itself."""
    async with Children(place) as children:
        yield children
        children.check()


@pytest.fixture
def envoys(envoy_binary: Path, children: Children, http: aiohttp.ClientSession) -> EnvoyStarter:
    """Starts Envoys of the newest version."""
    return EnvoyStarter(envoy_binary, children, http)


@pytest.fixture
def each_envoys(each_envoy: Path, children: Children, http: aiohttp.ClientSession) -> EnvoyStarter:
    """Starts Envoys, of one version after the other."""
    return EnvoyStarter(each_envoy, children, http)


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
async def serve_sds(place: Path) -> AsyncIterator[ServeSDS]:
    """Serves an SVID on a socket of its own: the hub to renew it in, and the socket's path."""
    async with AsyncExitStack() as stack:

        async def serve(held: HeldSVID) -> tuple[Hub, Path]:
            hub, path = Hub(), place / f"{held.svid.id.path.strip('/')}-sds" / "sds.sock"
            hub.replace(secrets_of(held))
            server = SecretServer(UnixAddress(path), hub, AgentMetrics())
            await server.start()
            stack.push_async_callback(server.stop)
            return hub, path

        yield serve


@pytest.fixture
async def serve_tcp(signer: Signer, place: Path) -> AsyncIterator[ServeTCP]:
    """Serves an SVID by mTLS, with its key only to a proxy that shows the same identity, from files that it has."""
    async with AsyncExitStack() as stack:

        async def serve(held: HeldSVID) -> tuple[Audience, RemoteAgent]:
            audience, serving = Audience([held.svid.id]), ServingSVID(lambda: datetime.now(UTC))
            audience.replace(secrets_of(held))
            serving.replace(signer.mint(AGENT))
            server = TcpSecretServer("127.0.0.1:0", audience, serving, AgentMetrics())
            await server.start()
            stack.push_async_callback(server.stop)
            directory = write_credentials(place / held.svid.id.path.strip("/"), held)
            return audience, RemoteAgent(parse_address(server.address), AGENT, directory)

        yield serve


@pytest.fixture
async def careless(place: Path) -> AsyncIterator[tuple[CarelessServer, Path]]:
    """An SDS server without any care, and its socket."""
    path, careless, server = place / "careless.sock", CarelessServer(), grpc.aio.server()
    server.add_generic_rpc_handlers((careless.handler(),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    yield careless, path
    await server.stop(None)


@pytest.fixture
async def pair(each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer) -> tuple[Pair, dict[str, Hub]]:
    """Two Envoys that trust each other, and the hubs behind them: `client` and `server`."""
    server_hub, server_socket = await serve_sds(signer.mint(SERVER))
    client_hub, client_socket = await serve_sds(signer.mint(CLIENT))
    server, port = await start_server(each_envoys, server_socket)
    client, url = await start_client(each_envoys, client_socket, port)
    return Pair(server, client, port, url), {"server": server_hub, "client": client_hub}
