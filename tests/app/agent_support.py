"""`agent` in the process of a test: its settings, its life, and what a proxy gets from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import grpc
import structlog
from structlog.typing import EventDict

from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from citadel_py._proto.envoy.service.secret.v3 import sds_pb2_grpc
from citadel_py.app import agent as agent_module
from citadel_py.app.served_socket import ServedSocket
from citadel_py.config import AgentSettings, parse_address
from citadel_py.core.bundle import Bundle
from citadel_py.core.keys import load_private_key, same_public_key
from citadel_py.core.pem import load_certificates
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.verify import verify_svid
from citadel_py.core.x509svid import X509SVID
from citadel_py.rotator.renewer import Renewer
from citadel_py.sds.socket import UnixAddress
from tests.ca.support import TD

WEB = SpiffeID(TD, "/ns/shop/sa/web")
FREE = parse_address("127.0.0.1:0")


def settings_of(place: Path, **changes: object) -> AgentSettings:
    """Everything below `place`; a source has to be among the changes."""
    base = {"id": WEB, "state": place / "state", "sds": f"unix:{place}/run/sds.sock", "admin": FREE}
    return AgentSettings(**{**base, **changes})


@dataclass
class RunningAgent:
    """An agent that is up, as one sees it from outside."""

    settings: AgentSettings
    task: asyncio.Task[None]
    log: list[EventDict]
    made: list[Renewer]
    sockets: list[ServedSocket]
    begin: int  # of its lines in the log

    def renew(self) -> None:
        """Have it renew all now."""
        for id in self.settings.identities:
            self.made[-1].hurry(id)

    @property
    def admin(self) -> str | None:
        """Where its readiness is, once it is up."""
        started = (line for line in self.told("server.started") if line.get("sds") == self.settings.sds)
        return next((line["admin"] for line in started), None)

    @property
    def socket(self) -> Path:
        return UnixAddress.parse(self.settings.served[0].path).path

    async def secrets(self, *names: str, socket: str | None = None) -> dict[str, Secret]:
        """What a proxy gets that asks for these names in one stream; waits until there are all of them."""
        address = UnixAddress.parse(socket) if socket else UnixAddress(self.socket)
        async with grpc.aio.insecure_channel(address.target) as channel, asyncio.timeout(20):
            call = sds_pb2_grpc.SecretDiscoveryServiceStub(channel).StreamSecrets()
            request = DiscoveryRequest(resource_names=names)
            while True:
                await call.write(request)
                response = await call.read()
                assert isinstance(response, DiscoveryResponse)
                if len(response.resources) == len(names):
                    return {secret.name: secret for secret in map(_secret, response.resources)}
                request.version_info, request.response_nonce = response.version_info, response.nonce

    async def svid(self, name: str = "default", socket: str | None = None) -> X509SVID:
        """The certificate that a proxy presents, verified with the bundle that it has."""
        return (await self.svids(name, socket=socket))[name]

    async def svids(self, *names: str, socket: str | None = None) -> dict[str, X509SVID]:
        """Several of them on one socket."""
        found = await self.secrets(*names, "ROOTCA", socket=socket)
        bundle = Bundle.from_pem(TD, found["ROOTCA"].validation_context.trusted_ca.inline_bytes)
        return {name: _verified(found[name], bundle) for name in names}

    async def ready(self) -> tuple[int, str]:
        return await self.page("/readyz?verbose")

    async def page(self, path: str) -> tuple[int, str]:
        """What the admin listener says there."""
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.admin}{path}") as response:
            return response.status, await response.text()

    def told(self, event: str) -> list[EventDict]:
        return [line for line in self.log[self.begin :] if line["event"] == event]


def _verified(secret: Secret, bundle: Bundle) -> X509SVID:
    certificate = secret.tls_certificate
    chain = load_certificates(certificate.certificate_chain.inline_bytes)
    key = load_private_key(certificate.private_key.inline_bytes)
    assert same_public_key(key.public_key(), chain[0].public_key())  # type: ignore[arg-type]
    return verify_svid(chain, bundle, now=datetime.now(UTC))


def _secret(packed: object) -> Secret:
    secret = Secret()
    packed.Unpack(secret)  # type: ignore[attr-defined]  # a google.protobuf.Any
    return secret


@asynccontextmanager
async def running(settings: AgentSettings, log: list[EventDict] | None = None) -> AsyncIterator[RunningAgent]:
    """Run the agent until the end of the block, or of the agent. Several at once need one `log` for them all."""
    made: list[Renewer] = []
    sockets: list[ServedSocket] = []

    def serve(*parts: Any, **options: Any) -> ServedSocket:
        sockets.append(ServedSocket(*parts, **options))
        return sockets[-1]

    def make(*parts: Any, **options: Any) -> Renewer:
        made.append(Renewer(*parts, **options))
        return made[-1]

    with nullcontext(log) if log is not None else structlog.testing.capture_logs() as events:
        with patch.multiple(agent_module, Renewer=make, ServedSocket=serve):
            task = asyncio.create_task(agent_module.agent(settings))
            agent = RunningAgent(settings, task, events, made, sockets, len(events))
            while not agent.admin and not task.done():
                await asyncio.wait({task}, timeout=0.005)
        try:
            if task.done():
                await task
            yield agent
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
