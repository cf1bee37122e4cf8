"""`serve` under load while its ledger's PostgreSQL is killed, hangs, or takes nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.app.serve_support import write_authority
from tests.app.service_process import Load, ServiceProcess, check_all_recorded, running
from tests.ca.support import call
from tests.store.postgres_server import ABSENT, PostgresServer, find_binaries

KILLS = 5
AT_ONCE_S = 2.0  # far less than it takes to give a server up, and much for a machine that is busy
_dice = random.Random()  # noqa: S311 - moments, no secrets


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(ABSENT)
    server = PostgresServer(binaries)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def url(server: PostgresServer, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    name = f"d{abs(hash(request.node.name)):x}"
    server.execute(f"CREATE DATABASE {name}")
    return server.url(name)


@pytest.fixture
def service(tmp_path: Path, url: str) -> ServiceProcess:
    write_authority(tmp_path / "D")
    return ServiceProcess(tmp_path / "D", more=("--ledger", url))


async def test_kill_9_of_the_server_at_any_moment_loses_no_certificate(
    service: ServiceProcess, server: PostgresServer, url: str
) -> None:
    load = Load(service)
    async with running(service), load.running():
        for _ in range(KILLS):
            await load.more(_dice.randrange(1, 200))
            await asyncio.to_thread(server.kill)
            await load.refused("UNAVAILABLE LEDGER_UNREACHABLE later", 1)
            await asyncio.to_thread(server.start)
        await load.more(20)
        await service.until_ready()
    check_all_recorded(url, service.directory, load.serials)


async def test_while_the_server_hangs_all_that_does_not_need_it_is_answered(
    service: ServiceProcess, server: PostgresServer, url: str
) -> None:
    load, latencies = Load(service), []
    loop = asyncio.get_running_loop()

    async def look_around() -> None:
        async with service.channel() as channel:
            while True:
                started = loop.time()
                assert (await service.page("/livez"))[0] == 200
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(channel, token="nobody's")
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                latencies.append(loop.time() - started)
                await asyncio.sleep(0.2)

    async with running(service), load.running():
        await load.more(20)
        server.freeze()
        try:
            looking = asyncio.create_task(look_around())
            await load.refused("UNAVAILABLE LEDGER_UNREACHABLE later", 1)
            await service.until_not_ready("no answer within 5s")
        finally:
            server.thaw()
        await load.more(20)
        await service.until_ready()
        looking.cancel()
        assert isinstance((await asyncio.gather(looking, return_exceptions=True))[0], asyncio.CancelledError)
    assert len(latencies) > 10
    assert max(latencies) < AT_ONCE_S
    check_all_recorded(url, service.directory, load.serials)


async def test_while_the_server_takes_nothing_nothing_is_issued(
    service: ServiceProcess, server: PostgresServer, url: str
) -> None:
    load = Load(service)
    database = url.partition("///")[2].partition("?")[0]

    def set_read_only(*, to: bool) -> None:
        server.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = {'on' if to else 'off'}")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'citadel-py'")

    async with running(service), load.running():
        await load.more(20)
        await asyncio.to_thread(set_read_only, to=True)
        await service.until_not_ready("[not ok] ledger: ")
        await load.refused("UNAVAILABLE LEDGER_READ_ONLY later", 5)
        await asyncio.to_thread(set_read_only, to=False)
        await load.more(20)
        await service.until_ready()
    check_all_recorded(url, service.directory, load.serials)


async def test_the_service_ends_while_the_server_hangs(service: ServiceProcess, server: PostgresServer) -> None:
    load = Load(service)
    async with running(service):
        async with load.running():
            await load.more(5)
            server.freeze()
        try:
            assert service.process is not None
            service.process.terminate()
            async with asyncio.timeout(30):
                assert await service.process.wait() == 0
        finally:
            server.thaw()
