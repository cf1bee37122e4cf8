"""`serve` in the process of a test: an authority on disk, the service on free ports, and clients of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import grpc
import structlog
from structlog.typing import EventDict

from citadel_py.app import serve as serve_module
from citadel_py.config import ServeSettings, parse_address
from citadel_py.core.bundle import Bundle
from citadel_py.core.join_token import new_token
from citadel_py.core.pem import load_certificates
from citadel_py.core.ports import JoinToken
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.verify import verify_svid
from citadel_py.core.x509svid import X509SVID
from citadel_py.store import authority_dir
from citadel_py.store.ledger import SQLLedger
from tests.ca.support import TD, Reply, call, make_authority

ID = SpiffeID(TD, "/machine/one")


def write_authority(
    directory: Path, *, passphrase: bytes | None = None, force: bool = False, trust_domain: TrustDomain = TD
) -> Bundle:
    """A new authority in the directory, as `init` makes one."""
    root, intermediate = make_authority(datetime.now(UTC).replace(microsecond=0), trust_domain)
    bundle = Bundle(trust_domain, (root.certificate,))
    authority_dir.create(
        directory, root=root, intermediate=intermediate, bundle=bundle, passphrase=passphrase, force=force
    )
    return bundle


def settings_of(directory: Path, **changes: object) -> ServeSettings:
    """Without the probe: what it issues is in the way of tests that count."""
    free, never = parse_address("localhost:0"), timedelta(0)
    return ServeSettings(**{"dir": directory, "listen": free, "admin": free, "probe_every": never, **changes})


@dataclass
class Running:
    """A service that is up, as one sees it from outside."""

    directory: Path
    task: asyncio.Task[None]
    events: list[EventDict]

    @property
    def addresses(self) -> EventDict:
        return next(line for line in self.events if line["event"] == "server.started")

    def bundle(self) -> Bundle:
        return Bundle.from_pem(TD, (self.directory / "ca.crt").read_bytes())

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        credentials = grpc.ssl_channel_credentials(self.bundle().to_pem())
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(self.addresses["listen"], credentials, options) as channel:
            yield channel

    async def ask(self, token: str) -> Reply:
        async with self.channel() as channel:
            return await call(channel, token=token)

    def verified(self, reply: Reply) -> X509SVID:
        chain = [each for element in reply.cert_chain[:-1] for each in load_certificates(element.encode())]
        return verify_svid(chain, self.bundle(), now=datetime.now(UTC))

    async def ready(self) -> tuple[int, str]:
        return await self.page("/readyz?verbose")

    async def page(self, path: str) -> tuple[int, str]:
        """What the admin listener says there."""
        url = f"http://{self.addresses['admin']}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()


def join_token(directory: Path, id: SpiffeID = ID) -> str:
    """A token that another process makes, beside the service."""
    text, digest = new_token(os.urandom(32))
    with SQLLedger.open(directory / "ledger.db", writer="offline") as ledger:
        ledger.add(JoinToken(digest, id, datetime.now(UTC) + timedelta(minutes=10)))
    return text


@asynccontextmanager
async def serving(settings: ServeSettings) -> AsyncIterator[Running]:
    """Run the service; it is asked to end as a person would, by cancelling or by a signal, if it has not."""
    with structlog.testing.capture_logs() as events:
        task = asyncio.create_task(serve_module.serve(settings))
        running = Running(settings.dir, task, events)
        try:
            while not any(line["event"] == "server.started" for line in events):
                await asyncio.wait({task}, timeout=0.005)
                if task.done():
                    await task
            yield running
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
