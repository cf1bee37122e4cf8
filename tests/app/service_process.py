"""`citadel-py serve` as a process that faults happen to, and clients that keep what they were given.

The clients are in the process of the test. They never stop because of an error: what they hold at
the end is compared with the ledger.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import grpc

from citadel_py.core.bundle import Bundle
from citadel_py.core.engine import Engine
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import private_key_pem
from citadel_py.core.ledger_heads import authority_keys
from citadel_py.core.pem import load_certificates
from citadel_py.core.policy import Policy
from citadel_py.core.verify import verify_svid
from citadel_py.obs.status import read_refusal
from citadel_py.store import authority_dir
from citadel_py.store.ledger import SQLLedger
from tests.ca.support import TD, Held, call, mint, new_csr, new_serial, until

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, and that the system gives to nobody by itself."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - a port, no secret
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
    return found


@dataclass
class ServiceProcess:
    """The service on an authority in `directory`; `wrapper` is put before its command.

    It has the same addresses after each start. `public` is where the test sees that authority.
    """

    directory: Path
    public: Path | None = None
    more: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        listen, mtls, admin = (f"127.0.0.1:{port}" for port in self.ports)
        with (self.directory.parent / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*self.wrapper, sys.executable, "-m", "citadel_py", "serve", "--dir", str(self.directory)),
                *("--listen", listen, "--listen-mtls", mtls, "--admin", admin, "--log-level", "warning"),
                *("--probe-every", "1s", *self.more),
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=log,
            )
        await self.until_ready()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        with suppress(ProcessLookupError):  # it has ended by itself
            self.process.kill()
        await self.process.wait()
        self.process = None

    async def page(self, path: str) -> tuple[int, str]:
        """What the admin listener says; 0 while there is none."""
        try:
            url = f"http://127.0.0.1:{self.ports[2]}{path}"
            async with aiohttp.ClientSession() as session, session.get(url) as reply:
                return reply.status, await reply.text()
        except aiohttp.ClientError:
            return 0, ""

    async def until_ready(self) -> None:
        await self._until_page(lambda status, _text: status == 200)

    async def until_not_ready(self, words: str) -> str:
        """Readiness is gone and says so in these words."""
        return await self._until_page(lambda status, text: status == 503 and words in text)

    async def _until_page(self, is_it: Callable[[int, str], bool]) -> str:
        status, text = 0, ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    status, text = await self.page("/readyz?verbose")
                    if is_it(status, text):
                        return text
                    assert self.process is None or self.process.returncode is None, self.log()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{status} {text}\n{self.log()}") from None

    def log(self) -> str:
        return (self.directory.parent / "log").read_text()[-5000:]

    def rss_mib(self) -> float:
        """Memory that is in use."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def engine(self) -> Engine:
        """What signs there, for certificates to begin with."""
        held = authority_dir.load(self.public or self.directory, passphrase=None)
        now = datetime.now(UTC)
        issuer = Issuer.activated(held.authority, held.intermediates, held.bundle, now=now, serial=new_serial())
        return Engine(issuer, Policy(TD), os.urandom)

    @asynccontextmanager
    async def channel(self, held: Held | None = None) -> AsyncIterator[grpc.aio.Channel]:
        """A connection that is made again as soon as it can be."""
        roots = ((self.public or self.directory) / "ca.crt").read_bytes()
        shown = () if held is None else (private_key_pem(held.key), held.svid.chain_pem())
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 20),
            ("grpc.min_reconnect_backoff_ms", 20),
            ("grpc.max_reconnect_backoff_ms", 50),
        ]
        address = f"127.0.0.1:{self.ports[0 if held is None else 1]}"
        async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots, *shown), options) as channel:
            yield channel


@asynccontextmanager
async def running(service: ServiceProcess) -> AsyncIterator[ServiceProcess]:
    """Start it, and kill whatever runs in the end."""
    await service.start()
    try:
        yield service
    finally:
        if service.process is not None:
            await service.kill()


@dataclass
class Load:
    """Clients that ask with a certificate, one request after the other, and keep what they get."""

    service: ServiceProcess
    serials: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def running(self, clients: int = 8) -> AsyncIterator[None]:
        engine = self.service.engine()
        tasks = [asyncio.create_task(self._client(engine, number)) for number in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends

    async def more(self, count: int) -> None:
        """So many further certificates have come."""
        wanted = len(self.serials) + count
        await until(lambda: len(self.serials) >= wanted, seconds=PATIENCE_S)

    async def refused(self, how: str, count: int) -> None:
        """So many more calls were refused in this way: code, reason, and whether it said when to come back."""
        wanted = self.refusals[how] + count
        try:
            await until(lambda: self.refusals[how] >= wanted, seconds=PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"{self.refusals}\n{self.service.log()}") from None

    async def _client(self, engine: Engine, number: int) -> None:
        held = mint(engine, f"/load/{number}", now=datetime.now(UTC))
        bundle: Bundle = engine.issuer.bundle
        csr = new_csr(held.key)
        loop = asyncio.get_running_loop()
        async with self.service.channel(held) as channel:
            while True:
                started = loop.time()
                try:
                    reply = await call(channel, csr=csr, timeout=15)
                except grpc.aio.AioRpcError as error:
                    self._refused(error)
                    await asyncio.sleep(0.005)
                    continue
                chain = [one for element in reply.cert_chain[:-1] for one in load_certificates(element.encode())]
                self.serials.append(verify_svid(chain, bundle, now=datetime.now(UTC)).serial)
                self.latencies_s.append(loop.time() - started)

    def _refused(self, error: grpc.aio.AioRpcError) -> None:
        refusal = read_refusal(error)
        waits = "" if refusal.retry_after is None else " later"
        self.refusals[f"{refusal.code.name} {refusal.reason}{waits}"] += 1


def check_all_recorded(place: Path | str, directory: Path, serials: list[str]) -> Mapping[str, int]:
    """Every certificate that somebody holds is in the ledger, once, and its chains are whole; their lengths."""
    with SQLLedger.open(place, writer="test", busy_timeout=timedelta(seconds=5)) as ledger:
        chains = ledger.verify(authority_keys(authority_dir.certificates(directory)))
        recorded = {entry.serial for entry in ledger.entries()}
    assert len(set(serials)) == len(serials)
    assert set(serials) <= recorded
    return {writer: chain.position for writer, chain in chains.items()}
