"""`serve` under load while things go wrong: whatever clients hold is in the ledger, and it goes on by itself."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.app.serve_support import write_authority
from tests.app.service_process import Load, ServiceProcess, check_all_recorded, running

KILLS = 5
_dice = random.Random()  # noqa: S311 - moments, no secrets


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_authority(tmp_path / "D")
    return tmp_path / "D"


@pytest.fixture
def service(directory: Path) -> ServiceProcess:
    return ServiceProcess(directory)


async def test_kill_9_of_the_service_at_any_moment_loses_no_certificate(service: ServiceProcess) -> None:
    load = Load(service)
    async with running(service), load.running():
        for _ in range(KILLS):
            await load.more(_dice.randrange(1, 200))
            await service.kill()
            await service.start()
        await load.more(20)
    lengths = check_all_recorded(service.directory / "ledger.db", service.directory, load.serials)
    assert list(lengths) == ["serve"]


async def test_while_the_ledger_is_locked_nothing_is_issued_and_afterwards_it_goes_on(service: ServiceProcess) -> None:
    load = Load(service)
    async with running(service), load.running():
        await load.more(20)
        lock = sqlite3.connect(service.directory / "ledger.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        text = await service.until_not_ready("database is locked")
        held = len(load.serials)
        await load.refused("UNAVAILABLE LEDGER_LOCKED later", 5)
        assert len(load.serials) == held, text
        lock.close()
        await load.more(20)
        await service.until_ready()
    check_all_recorded(service.directory / "ledger.db", service.directory, load.serials)


async def test_a_limit_on_the_size_of_files_stops_issuing_until_it_is_lifted(service: ServiceProcess) -> None:
    load = Load(service)
    async with running(service), load.running():
        await load.more(20)
        unlimited = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (1, unlimited[1]))
        await service.until_not_ready("[not ok] ledger: ")
        held = len(load.serials)
        await load.refused("UNAVAILABLE LEDGER_IO_ERROR later", 5)
        assert len(load.serials) == held
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, unlimited)
        await load.more(20)
        await service.until_ready()
    check_all_recorded(service.directory / "ledger.db", service.directory, load.serials)


# ------------------------------------------------------------------------------------------------ a disk that is full

# A file system of two MiB that the service alone sees, with a copy of its directory on it.
_SMALL_DISK = """
mount -t tmpfs -o size=2m small "$1" && cp -a "$0/." "$1" && shift && exec "$@"
"""
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.fixture
def on_a_small_disk(directory: Path, tmp_path: Path) -> ServiceProcess:
    allowed = subprocess.run([*_UNSHARE, "mount", "-t", "tmpfs", "none", tmp_path], check=False, capture_output=True)
    if allowed.returncode:
        pytest.skip(f"no file system of our own: {allowed.stderr.decode()}")
    place = tmp_path / "small"
    place.mkdir()
    wrapper = (*_UNSHARE, "sh", "-c", _SMALL_DISK, str(directory), str(place))
    return ServiceProcess(place, public=directory, wrapper=wrapper)


async def test_a_full_disk_stops_issuing_until_there_is_room(on_a_small_disk: ServiceProcess, tmp_path: Path) -> None:
    service, load = on_a_small_disk, Load(on_a_small_disk)
    async with running(service):
        inside = Path(f"/proc/{service.pid}/root{service.directory}")
        async with load.running():
            await load.more(20)
            fill(inside / "filler")
            await service.until_not_ready("[not ok] ledger: ")
            await load.refused("UNAVAILABLE LEDGER_DISK_FULL later", 5)
            (inside / "filler").unlink()
            await load.more(20)
            await service.until_ready()
        os.kill(service.pid, signal.SIGSTOP)
        seen = shutil.copytree(inside, tmp_path / "seen")  # SQLite does not take the path into /proc
    check_all_recorded(seen / "ledger.db", seen, load.serials)


def fill(path: Path) -> None:
    """All that is left on its file system."""
    with path.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
