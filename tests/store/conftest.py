"""Fixtures of the store's tests."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from citadel_py.store.ledger import SQLLedger
from tests.store.things import NOW, Pki, new_held, new_pki

OpenLedger = Callable[..., SQLLedger]


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def pki() -> Pki:
    return new_pki()


@pytest.fixture(scope="session")
def svid_pem(pki: Pki) -> bytes:
    """The chain of a workload."""
    return new_held(pki).svid.chain_pem()


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    SQLLedger.open(path, writer="nobody").close()
    return path


@pytest.fixture
def ledger_path(tmp_path: Path, empty_ledger: Path) -> Path:
    """A ledger without entries: making its tables anew for each test takes longer than most tests."""
    return Path(shutil.copy(empty_ledger, tmp_path / "ledger.db"))


@pytest.fixture(params=["sqlite"])
def open_ledger(request: pytest.FixtureRequest, ledger_path: Path, clock: Clock) -> Iterator[OpenLedger]:
    """Opens the same database again and again, under different writers' names."""
    opened: list[SQLLedger] = []

    def open_it(writer: str = "one") -> SQLLedger:
        assert request.param == "sqlite"
        opened.append(SQLLedger.open(ledger_path, writer=writer, now=clock, busy_timeout=timedelta(seconds=10)))
        return opened[-1]

    yield open_it
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: OpenLedger) -> SQLLedger:
    return open_ledger()


@pytest.fixture
def open_to_nobody() -> Iterator[Path]:
    """A directory that belongs to whom `ordinary_user` is, wherever the tests run."""
    path = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
    yield path
    shutil.rmtree(path)
