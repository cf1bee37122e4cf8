"""Fixtures of the store's tests."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from citadel_py.core.ledger_heads import Seal
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.schema import METADATA
from tests.store.postgres_server import ABSENT, PostgresServer, find_binaries
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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server with an empty ledger in the database `ledger`."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(ABSENT)
    server = PostgresServer(binaries)
    try:
        server.start()
        server.execute("CREATE DATABASE ledger")
        SQLLedger.open(server.url("ledger"), writer="nobody").close()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """A ledger without entries on PostgreSQL."""
    names = ", ".join(table.name for table in METADATA.sorted_tables)
    postgres_server.execute(f"TRUNCATE {names}", "ledger")
    return postgres_server.url("ledger")


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest) -> Path | str:
    """A ledger without entries on each kind of database."""
    name = {"sqlite": "ledger_path", "postgres": "postgres_url"}[request.param]
    url: Path | str = request.getfixturevalue(name)
    return url


@pytest.fixture
def open_ledger(ledger_url: Path | str, clock: Clock) -> Iterator[OpenLedger]:
    """Opens the same database again and again, under different writers' names."""
    opened: list[SQLLedger] = []

    def open_it(writer: str = "one", seal: Seal | None = None) -> SQLLedger:
        timeout = timedelta(seconds=10)
        signer = (lambda: seal) if seal else None
        opened.append(SQLLedger.open(ledger_url, writer=writer, now=clock, busy_timeout=timeout, seal=signer))
        return opened[-1]

    yield open_it
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: OpenLedger) -> SQLLedger:
    return open_ledger()


@pytest.fixture
def raw(ledger_url: Path | str) -> Iterator[sa.Connection]:
    """Whoever can write the database, behind the ledger's back."""
    url = f"sqlite:///{ledger_url}" if isinstance(ledger_url, Path) else "postgresql+psycopg://"
    creator = {} if isinstance(ledger_url, Path) else {"creator": lambda: psycopg.connect(str(ledger_url))}
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool, **creator)
    with engine.connect() as connection:
        yield connection


@pytest.fixture(scope="session")
def seal(pki: Pki) -> Seal:
    """The signature of the authority in `pki`, which knows its root too."""
    return Seal.of(pki.intermediate, [pki.root.certificate])


@pytest.fixture
def open_to_nobody() -> Iterator[Path]:
    """A directory that belongs to whom `ordinary_user` is, wherever the tests run."""
    path = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
    yield path
    shutil.rmtree(path)
