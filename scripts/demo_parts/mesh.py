"""The parts of the demo, each a process of its own: a CA, and an agent and an Envoy for each side."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from citadel_py.agent.envoy_bootstrap import LISTENER, client_bootstrap, server_bootstrap
from citadel_py.agent.envoy_proxy import ClientProxy, ServerProxy
from citadel_py.config import Address
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from demo_parts.children import Child, Children
from demo_parts.envoys import Envoy, EnvoyStarter
from demo_parts.wire import CLIENT_HEADERS, SERVER_HEADERS, Side

ROOT = Path(__file__).resolve().parent.parent.parent
TRUST_DOMAIN = TrustDomain("example.org")
TTL = "1m"  # the shortest that the CA issues

_HOST = "127.0.0.1"
_READY_S = 30.0
_PORTS = range(20000, 32768)  # below those that the system gives out by itself
_MISLEADING = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")  # gRPC would ask them for loopback too


@dataclass(frozen=True)
class Ports:
    """Where the CA and the agents listen. Chosen before they start, so that a restarted CA has them again."""

    ca: int
    ca_mtls: int
    ca_admin: int
    agent_admin: Mapping[Side, int]

    @classmethod
    def choose(cls) -> Ports:
        ca, ca_mtls, ca_admin, *agents = _free_ports(3 + len(Side))
        return cls(ca, ca_mtls, ca_admin, dict(zip(Side, agents, strict=True)))


@dataclass
class Mesh:
    """Starts the parts among `children`, in whose directory all of them work. Paths are relative to it."""

    children: Children
    envoy_binary: Path
    http: aiohttp.ClientSession
    ports: Ports = field(default_factory=Ports.choose)
    envoys: dict[Side, Envoy] = field(default_factory=dict)
    url: str = ""
    _ca: Child | None = None

    async def found(self) -> None:
        """Make the authority."""
        await self._citadel_to_its_end("init", "--dir", "ca", "--trust-domain", str(TRUST_DOMAIN))

    async def start_ca(self) -> None:
        """Start it, and wait until it is ready. Raises Failure."""
        await self.launch_ca()
        await self.children.until(self.is_ca_ready, "the CA is ready", within_s=_READY_S)

    async def launch_ca(self) -> None:
        """Start it, without waiting."""
        ports = self.ports
        listen = ("--listen", f"{_HOST}:{ports.ca}", "--listen-mtls", f"{_HOST}:{ports.ca_mtls}")
        self._ca = await self._citadel("CA", "serve", "--dir", "ca", *listen, "--admin", f"{_HOST}:{ports.ca_admin}")

    async def kill_ca(self) -> None:
        """SIGKILL: it has no chance to say goodbye."""
        if self._ca:
            await self._ca.kill()

    async def start_agent(self, side: Side) -> None:
        """Start the agent of one side with a join token of its own, and wait until it has a certificate."""
        token = await self._citadel_to_its_end("token", "create", str(spiffe_id(side)), "--dir", "ca")
        token_file = Path(f"{side}.token")
        _write_private(self.children.directory / token_file, token)
        await self._citadel(f"{side} agent", "agent", *self._agent_options(side, token_file))
        await self.children.until(lambda: self.is_agent_ready(side), f"the {side} agent is ready", within_s=_READY_S)

    async def start_envoys(self) -> None:
        """Start both Envoys; afterwards `url` takes requests."""
        starter = EnvoyStarter(self.envoy_binary, self.children, self.http)
        server = await starter.start("server Envoy", server_bootstrap(_server_proxy()))
        self.envoys[Side.SERVER] = server
        upstream = Address(_HOST, await server.port(LISTENER))
        client = await starter.start("client Envoy", client_bootstrap(_client_proxy(upstream)))
        self.envoys[Side.CLIENT] = client
        self.url = f"http://{_HOST}:{await client.port(LISTENER)}/"

    @property
    def ca_admin(self) -> str:
        return f"http://{_HOST}:{self.ports.ca_admin}"

    def agent_admin(self, side: Side) -> str:
        return f"http://{_HOST}:{self.ports.agent_admin[side]}"

    async def is_ca_ready(self) -> bool:
        return await self._answers(f"{self.ca_admin}/readyz")

    async def is_agent_ready(self, side: Side) -> bool:
        return await self._answers(f"{self.agent_admin(side)}/readyz")

    async def agent_metrics(self, side: Side) -> str:
        """What the agent tells in the Prometheus text format. Raises aiohttp.ClientError, TimeoutError."""
        async with self.http.get(f"{self.agent_admin(side)}/metrics") as response:
            return await response.text()

    async def full_handshakes(self) -> int:
        """How many mTLS handshakes the server Envoy has completed, without those that resumed a session."""
        server = self.envoys[Side.SERVER]
        resumed = await server.total(r"^listener\..*\.ssl\.session_reused$")
        return await server.total(r"^listener\..*\.ssl\.handshake$") - resumed

    def _agent_options(self, side: Side, token_file: Path) -> list[str | Path]:
        return [
            *("--ca", f"{_HOST}:{self.ports.ca}", "--ca-bundle", "ca/ca.crt", "--token-file", token_file),
            *("--id", str(spiffe_id(side)), "--ttl", TTL, "--state", f"{side}-state"),
            *("--sds", f"unix:{_sds_socket(side)}", "--admin", f"{_HOST}:{self.ports.agent_admin[side]}"),
        ]

    async def _citadel(self, name: str, *arguments: str | Path) -> Child:
        return await self.children.start(name, _citadel_py(*arguments), env=_environment())

    async def _citadel_to_its_end(self, *arguments: str) -> bytes:
        name = f"citadel-py {arguments[0]}"
        return await self.children.output_of(name, _citadel_py(*arguments), env=_environment())

    async def _answers(self, url: str) -> bool:
        try:
            async with self.http.get(url) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


def spiffe_id(side: Side) -> SpiffeID:
    return SpiffeID(TRUST_DOMAIN, f"/{side}")


def _sds_socket(side: Side) -> Path:
    """Relative: a Unix socket's path has few bytes, and a temporary directory's may be long."""
    return Path(f"{side}-sds/sds.sock")


def _server_proxy() -> ServerProxy:
    return ServerProxy(
        node="server",
        sds=_sds_socket(Side.SERVER),
        listen=Address(_HOST, 0),
        admin_port=0,
        admitted=(spiffe_id(Side.CLIENT),),
        response_headers=SERVER_HEADERS,
    )


def _client_proxy(upstream: Address) -> ClientProxy:
    return ClientProxy(
        node="client",
        sds=_sds_socket(Side.CLIENT),
        listen=Address(_HOST, 0),
        admin_port=0,
        upstream=upstream,
        peer=spiffe_id(Side.SERVER),
        max_requests_per_connection=1,
        response_headers=CLIENT_HEADERS,
    )


def _citadel_py(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "citadel_py", *arguments]


def _environment() -> dict[str, str]:
    """This clone's program, without the settings that a user may have for another one."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("CITADEL_") and name.lower() not in _MISLEADING
    }
    return {**inherited, "PYTHONPATH": str(ROOT)}


def _write_private(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; all are held until the last is found, so that they differ."""
    candidates = iter(random.sample(_PORTS, len(_PORTS)))
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        return [next(port for port in candidates if _binds(probe, port)) for probe in probes]


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind((_HOST, port))
    except OSError:
        return False
    return True
