"""`serve --workers`: several processes on one port, and one service as seen from outside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from citadel_py.app.workers import serve_with_workers
from citadel_py.config import parse_address
from citadel_py.core.errors import Unavailable
from tests.app.serve_support import settings_of, write_authority
from tests.app.workers_support import Load, Workers, starting, token_issuer, workers
from tests.ca.support import TokenIssuer, call

CHAINS = {"serve-0", "serve-1"}


@pytest.fixture(scope="module")
def issuer() -> TokenIssuer:
    return token_issuer()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_authority(tmp_path / "D")
    return tmp_path / "D"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, issuer: TokenIssuer) -> Iterator[Workers]:
    """Two workers, for tests that leave them as they are."""
    place = tmp_path_factory.mktemp("workers")
    write_authority(place / "D")
    with starting(place / "D", issuer) as service:
        with asyncio.Runner() as runner:
            runner.run(service.until_begun())
        yield service


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


def told(manager: socket.socket, heard: list[str]) -> list[str]:
    """Every line that the manager got so far."""
    try:
        while True:
            heard += manager.recv(4096).decode().splitlines()
    except BlockingIOError:
        return heard


def of_process(pid: int, file: str) -> bytes:
    return Path(f"/proc/{pid}/{file}").read_bytes()


def open_files(pid: int) -> list[str]:
    return [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]


async def test_all_of_them_issue_on_one_port_into_one_ledger(service: Workers) -> None:
    load = Load(service)
    before = service.issued_by()
    async with load.running():
        await service.until(lambda: all(service.issued_by()[chain] > before[chain] for chain in CHAINS))
    assert not load.codes
    assert set(load.serials) <= service.recorded()
    assert set(service.verified_chains()) == CHAINS


async def test_all_of_them_name_the_same_port_for_renewals(service: Workers) -> None:
    ports, before = set(), service.issued_by()
    while not all(service.issued_by()[chain] > before[chain] for chain in CHAINS):
        async with service.seen.channel() as channel:
            answering = call(channel, token=service.issuer.token())
            await answering
            ports |= {value for name, value in await answering.trailing_metadata() or () if "mtls" in name}
    assert ports == {str(parse_address(service.seen.addresses["listen_mtls"]).port)}


async def test_metrics_of_all_are_one_page(service: Workers) -> None:
    await Load(service).once()
    families = list(text_string_to_metric_families(await service.page("/metrics")))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    samples = [sample for family in families for sample in family.samples]
    issued = [sample for sample in samples if sample.labels.get("method") == "jwt"]
    assert sum(sample.value for sample in issued) == service.issued_by().total()
    assert {sample.labels["worker"] for sample in issued} <= {"0", "1"}
    assert [sample.value for sample in samples if sample.name == "citadel_workers"] == [2]
    times = [sample.labels.get("worker") for sample in samples if sample.name == "process_cpu_seconds_total"]
    assert times == [None, "0", "1"]


async def test_who_trusts_what_is_one_page(service: Workers) -> None:
    page = json.loads(await service.page("/trust"))
    assert page["trust_domain"] == "example.org"
    assert page["count"]["current"] == 0


def test_the_supervisor_has_no_grpc_and_no_ledger_open(service: Workers) -> None:
    assert b"cygrpc" not in of_process(service.process.pid, "maps")
    assert b"cygrpc" in of_process(service.pids()[0], "maps")
    assert not [file for file in open_files(service.process.pid) if "ledger" in file]
    assert [file for file in open_files(service.pids()[0]) if "ledger" in file]


async def test_what_is_secret_is_in_no_argument_and_no_variable(tmp_path: Path, issuer: TokenIssuer) -> None:
    directory, passphrase = tmp_path / "D", b"open sesame 42"
    write_authority(directory, passphrase=passphrase)
    (tmp_path / "passphrase").write_bytes(passphrase)
    (tmp_path / "passphrase").chmod(0o600)
    async with workers(directory, issuer, "--passphrase-file", tmp_path / "passphrase") as service:
        (tmp_path / "passphrase").unlink()  # it was read once, as standard input can be
        for pid in (service.process.pid, *service.pids().values()):
            for file in ("cmdline", "environ"):
                assert passphrase not in of_process(pid, file)
        os.kill(service.pids()[0], signal.SIGKILL)
        await service.until(lambda: len(service.of("worker.started")) == 3)
        await service.until_ready()
        assert passphrase.decode() not in service.log.read_text()


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
async def test_under_load_a_signal_loses_no_request(
    directory: Path, issuer: TokenIssuer, received: signal.Signals
) -> None:
    async with workers(directory, issuer) as service:
        load = Load(service)
        async with load.running():
            await load.more()
            pids = service.pids().values()
            service.process.send_signal(received)
            assert await service.ended() == 0
            assert not any(map(os.path.exists, (f"/proc/{pid}" for pid in pids)))
        assert set(load.codes) <= {"UNAVAILABLE"}
        with_answer = service.recorded()
        assert set(load.serials) <= with_answer
        chains = service.verified_chains()
        assert all(chain.signed_to == chain.position for chain in chains.values())
        assert [line["event"] for line in service.events][-1] == "process.stopped"


async def test_a_port_that_is_taken_is_an_error_before_any_worker(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("citadel_py.app.workers.configure", lambda *_: None)
    monkeypatch.setattr("citadel_py.app.reserved_port.PATIENCE", timedelta(milliseconds=20))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = parse_address(f"127.0.0.1:{other.getsockname()[1]}")
        for name in ("listen", "listen_mtls", "admin"):
            with structlog.testing.capture_logs() as events, pytest.raises(Unavailable) as caught:
                await serve_with_workers(settings_of(directory, workers=2, **{name: taken}))
            assert caught.value.rule == "listen_failed"
            assert str(taken) in caught.value.message
            assert not [line for line in events if line["event"] == "worker.started"]


async def test_an_authority_that_cannot_work_is_one_clear_error(directory: Path, issuer: TokenIssuer) -> None:
    (directory / "intermediate" / "tls.key").write_text("no key")
    with starting(directory, issuer, "--workers", "3") as service:
        assert await service.ended() == 3
        said = service.log.read_text()
    assert said.count("citadel-py: error:") == 1
    assert "tls.key" in said
    assert "Traceback" not in said
    assert not (directory / "ledger.db").exists()


async def test_what_one_worker_cannot_begin_with_is_one_clear_error(directory: Path, issuer: TokenIssuer) -> None:
    with starting(directory, issuer, "--server-name", "no name") as service:
        assert await service.ended() == 3
        assert service.log.read_text().count("invalid_dns_name") == 1


async def test_the_service_manager_is_told(
    directory: Path, issuer: TokenIssuer, tmp_path: Path, manager: socket.socket
) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "40000"}
    heard: list[str] = []
    async with workers(directory, issuer, environment=environment) as service:
        await service.until(lambda: told(manager, heard).count("WATCHDOG=1") > 2)
        assert heard[0] == "READY=1"
        assert heard[1].startswith("STATUS=2 workers at localhost:")
        service.process.send_signal(signal.SIGHUP)
        await service.until(lambda: told(manager, heard).count("READY=1") == 2)
        assert "RELOADING=1" in heard
        service.process.terminate()
        assert await service.ended() == 0
        assert "STOPPING=1" in told(manager, heard)
