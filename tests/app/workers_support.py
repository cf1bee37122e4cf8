"""`citadel-py serve --workers 2` as processes: started, looked at from outside, and killed by tests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from cryptography.hazmat.primitives.asymmetric import rsa

from citadel_py.core.ledger_heads import authority_keys
from citadel_py.store import authority_dir
from citadel_py.store.chains import Chain
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.search import Search
from tests.app.serve_support import Running
from tests.ca.support import AUDIENCE, ISSUER, Clock, TokenIssuer, call

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40.0
# The program, with less patience of its own: what a minute would show is seen in a second.
IMPATIENT = """
import sys
from datetime import timedelta
from citadel_py.app import worker_slot
from citadel_py.cli import main
worker_slot.FIRST_WAIT = worker_slot.LONGEST_WAIT = timedelta(milliseconds=50)
worker_slot.HUNG_AFTER = timedelta(seconds=2)
sys.exit(main())
"""


@dataclass
class Workers:
    """A supervisor that was started, with what it and its workers have said."""

    directory: Path
    process: subprocess.Popen[bytes]
    log: Path
    issuer: TokenIssuer

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("}\n")]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.events if line["event"] == event]

    @property
    def seen(self) -> Running:
        """What one sees of a service, whatever processes it has."""
        return Running(self.directory, asyncio.get_running_loop().create_future(), self.events)  # type: ignore[arg-type]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.01)

    async def ended(self) -> int:
        """Its exit code, once it has one."""
        async with asyncio.timeout(PATIENCE_S):
            while (code := self.process.poll()) is None:
                await asyncio.sleep(0.01)
        return code

    async def until_begun(self) -> None:
        await self.until(lambda: bool(self.of("server.started")))
        await self.until_ready()

    async def until_ready(self) -> str:
        """Both workers are there again, whatever else is told of them."""
        text = ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not {"[ok] worker 0", "[ok] worker 1"} <= set(text.splitlines()):
                    await asyncio.sleep(0.01)
                    text = (await self.seen.ready())[1]
        except TimeoutError:
            raise AssertionError(text) from None
        return text

    async def until_told(self, text: str) -> tuple[int, str]:
        """Readiness says this."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                status, told = await self.seen.ready()
                if text in told:
                    return status, told
                await asyncio.sleep(0.01)

    async def metrics(self) -> str:
        return await self.page("/metrics")

    async def page(self, path: str) -> str:
        url = f"http://{self.seen.addresses['admin']}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            assert reply.status == 200
            return await reply.text()

    def pids(self) -> dict[int, int]:
        """Of the workers that live: number to process."""
        last = {line["worker"]: line["pid"] for line in self.of("worker.started")}
        return {number: pid for number, pid in last.items() if is_alive(pid)}

    def issued_by(self) -> Counter[str]:
        """How many certificates callers got, by chain."""
        with SQLLedger.open(self.directory / "ledger.db", writer="test") as ledger:
            return Counter(each.writer for each in ledger.by_chain(Search()) if each.entry.method == "jwt")

    def verified_chains(self) -> dict[str, Chain]:
        with SQLLedger.open(self.directory / "ledger.db", writer="test") as ledger:
            return dict(ledger.verify(authority_keys(authority_dir.certificates(self.directory))))

    def authorities_of(self, serials: Collection[str]) -> set[str]:
        with SQLLedger.open(self.directory / "ledger.db", writer="test") as ledger:
            return {entry.authority_id for entry in ledger.entries() if entry.serial in serials}

    def recorded(self) -> set[str]:
        with SQLLedger.open(self.directory / "ledger.db", writer="test") as ledger:
            return {entry.serial for entry in ledger.entries()}


@dataclass
class Load:
    """Clients that ask without end, each time on a new connection, and try again when they are told to."""

    service: Workers
    clients: int = 4
    serials: list[str] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        clients = [asyncio.create_task(self._client(number)) for number in range(self.clients)]
        try:
            yield self
        finally:
            for each in clients:
                each.cancel()
            ended = await asyncio.gather(*clients, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended

    async def _client(self, number: int) -> None:
        while True:
            await self.once(number)

    async def once(self, number: int = 0) -> None:
        seen = self.service.seen
        token = self.service.issuer.token(sub=f"system:serviceaccount:shop:cart-{number}")
        async with seen.channel() as channel:
            try:
                reply = await call(channel, token=token)
            except grpc.aio.AioRpcError as error:
                self.codes[error.code().name] += 1
            else:
                self.serials.append(seen.verified(reply).serial)

    async def more(self, count: int = 20) -> None:
        """Wait until they got some more."""
        goal = len(self.serials) + count
        await self.service.until(lambda: len(self.serials) >= goal)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def token_issuer() -> TokenIssuer:
    return TokenIssuer(rsa.generate_private_key(public_exponent=65537, key_size=2048), Clock())


@contextmanager
def starting(
    directory: Path, issuer: TokenIssuer, *options: str | Path, environment: dict[str, str] | None = None
) -> Iterator[Workers]:
    """The processes; nothing of them is left after the block."""
    log, jwks = directory.parent / f"log-{datetime.now(UTC).timestamp()}", directory.parent / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    given = list(map(str, options))
    command = ["serve", "--dir", str(directory), "--log-format", "json", "--admin", "localhost:0", *given]
    command += ["--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE, "--jwt-jwks", str(jwks)]
    command += [] if "--workers" in given else ["--workers", "2"]
    command += [] if "--listen" in given else ["--listen", "localhost:0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, *command],
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stderr=output,
        )
    service = Workers(directory, process, log, issuer)
    try:
        yield service
    finally:
        process.kill()
        process.wait()
        for pid in service.pids().values():
            os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def workers(directory: Path, issuer: TokenIssuer, *options: str | Path, **more: Any) -> AsyncIterator[Workers]:
    """The same, once all of them are ready."""
    with starting(directory, issuer, *options, **more) as service:
        await service.until_begun()
        yield service
