"""`serve` under floods: whoever behaves well goes on to get certificates, and memory stays bounded."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest

from citadel_py._proto.citadel.v1 import issuance_pb2, issuance_pb2_grpc
from tests.app.serve_support import write_authority
from tests.app.service_process import Load, ServiceProcess, check_all_recorded, running
from tests.ca.support import Held, call, mint, new_csr

Flood: TypeAlias = Callable[[ServiceProcess], Awaitable[None]]

_dice = random.Random()  # noqa: S311 - no secrets
CERTIFICATES = 20  # that one client gets meanwhile, one after the other
MOST_GROWTH_MIB = 150  # what bounded buffers of a few hundred connections may take
SLOWEST_S = 2.0  # of a certificate, half of the time


def held(service: ServiceProcess, name: str) -> Held:
    return mint(service.engine(), f"/flood/{name}", now=datetime.now(UTC))


async def strangers_without_a_word(service: ServiceProcess) -> None:
    """A connection that says nothing, or nothing that makes sense, and waits for a while."""
    words = _dice.choice((b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n" * 100))
    reader, writer = await asyncio.open_connection("127.0.0.1", _dice.choice(service.ports[:2]))
    try:
        writer.write(words)
        async with asyncio.timeout(_dice.random()):
            await reader.read()
    finally:
        writer.close()


async def strangers_with_bad_tokens(service: ServiceProcess) -> None:
    while True:
        async with service.channel() as channel:
            for _ in range(10):
                await asyncio.gather(*(call(channel, token="x" * 8000) for _ in range(10)), return_exceptions=True)


async def bad_csrs(service: ServiceProcess) -> None:
    bad = [new_csr().replace("A", "B"), "no CSR", "-----BEGIN CERTIFICATE REQUEST-----\n" * 400, new_csr()[:-60]]
    async with service.channel(held(service, "bad")) as channel:
        while True:
            await asyncio.gather(*(call(channel, csr=csr) for csr in bad * 10), return_exceptions=True)


async def one_that_loops(service: ServiceProcess) -> None:
    mine = held(service, "loop")
    csr = new_csr(mine.key)
    async with service.channel(mine) as channel:
        while True:
            await asyncio.gather(*(call(channel, csr=csr) for _ in range(100)), return_exceptions=True)


async def slow_readers(service: ServiceProcess) -> None:
    """Streams that ask for ever and read nothing."""
    mine = held(service, "slow")
    csr = new_csr(mine.key).encode()
    async with service.channel(mine) as channel:
        stream = issuance_pb2_grpc.IssuanceServiceStub(channel).Issue()
        for number in itertools.count():
            requests = [issuance_pb2.IssueRequest(request_id=f"{number}-{each}", csr=csr) for each in range(50)]
            await stream.write(issuance_pb2.IssueRequests(requests=requests))


FLOODS: dict[str, tuple[Flood, int]] = {
    "strangers without a word": (strangers_without_a_word, 300),
    "strangers with bad tokens": (strangers_with_bad_tokens, 8),
    "bad CSRs": (bad_csrs, 4),
    "one that loops": (one_that_loops, 4),
    "slow readers": (slow_readers, 16),
}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    write_authority(tmp_path / "D")
    async with running(ServiceProcess(tmp_path / "D")) as service:
        yield service


@pytest.mark.parametrize(("flood", "clients"), FLOODS.values(), ids=FLOODS)
async def test_a_flood_keeps_nobody_from_certificates(service: ServiceProcess, flood: Flood, clients: int) -> None:
    load = Load(service)
    async with load.running(clients=1):
        await load.more(CERTIFICATES)
        before_mib = service.rss_mib()
        async with asyncio.TaskGroup() as floods:
            tasks = [floods.create_task(_repeated(flood, service)) for _ in range(clients)]
            load.latencies_s.clear()
            await load.more(CERTIFICATES)
            assert (await service.page("/readyz"))[0] == 200
            for task in tasks:
                task.cancel()
    growth = service.rss_mib() - before_mib
    assert not load.refusals
    assert statistics.median(load.latencies_s) < SLOWEST_S
    assert growth < MOST_GROWTH_MIB
    check_all_recorded(service.directory / "ledger.db", service.directory, load.serials)


async def _repeated(flood: Flood, service: ServiceProcess) -> None:
    """It begins again where it is thrown out."""
    while True:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, OSError, TimeoutError):
            await flood(service)
