"""What happens to the file happens to the ledger: an error that says what, nothing half-written, and
work goes on by itself once the cause is gone. Every failure here is a real one."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from citadel_py.core.errors import LedgerUnavailable
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.sqlite import SQLiteDatabase
from tests.store.conftest import Clock, OpenLedger
from tests.store.things import entry, ordinary_user

BATCH = [entry(number) for number in range(10, 13)]
AFTERWARDS = entry(99)


def refused(ledger: SQLLedger) -> LedgerUnavailable:
    with pytest.raises(LedgerUnavailable) as caught:
        ledger.append(BATCH)
    return caught.value


def check_recovered(ledger: SQLLedger) -> None:
    """The first entry is there, the refused batch is not, and the next entry is taken."""
    ledger.append([AFTERWARDS])
    assert list(ledger.entries()) == [entry(1), AFTERWARDS]
    assert ledger.verify()["one"].position == 2


@pytest.fixture
def ledger(ledger_path: Path) -> Iterator[SQLLedger]:
    """One with an entry, that does not wait for others."""
    with SQLLedger.open(ledger_path, writer="one", busy_timeout=timedelta(milliseconds=5)) as opened:
        opened.append([entry(1)])
        yield opened


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_locked_by_another_connection(ledger: SQLLedger, ledger_path: Path, begin: str) -> None:
    other = sqlite3.connect(ledger_path, isolation_level=None)
    other.execute(begin)
    error = refused(ledger)
    assert error.rule == "ledger_locked"
    assert "another process" in error.hints[0]
    other.close()
    check_recovered(ledger)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow beyond the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 5000, 9000])
def test_the_operating_system_refuses_to_write(ledger: SQLLedger, ledger_path: Path, room: int) -> None:
    size = ledger_path.with_name("ledger.db-wal").stat().st_size
    with file_size_limit(size + room):
        assert refused(ledger).rule == "ledger_io_error"
        assert refused(ledger).rule == "ledger_io_error"
    check_recovered(ledger)


def test_the_database_is_full(ledger_path: Path, clock: Clock) -> None:
    database = SQLiteDatabase.open(ledger_path, busy_timeout=timedelta(0))

    def leave_no_room(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 1").close()  # means: as many as there are now

    with SQLLedger(database, writer="one", now=clock) as ledger:
        ledger.append([entry(1)])
        ledger.close()
        sa.event.listen(database.engine, "connect", leave_no_room)
        with pytest.raises(LedgerUnavailable) as caught:
            ledger.append([entry(number) for number in range(100, 400)])
        assert caught.value.rule == "ledger_disk_full"
        assert caught.value.hints == ("make room on the file system",)
        sa.event.remove(database.engine, "connect", leave_no_room)
        check_recovered(ledger)


@pytest.fixture
def ledger_of_nobody(open_to_nobody: Path) -> Iterator[SQLLedger]:
    with ordinary_user():
        ledger = SQLLedger.open(open_to_nobody / "ledger.db", writer="one")
        ledger.append([entry(1)])
        ledger.close()
    yield ledger
    ledger.close()


@pytest.mark.parametrize(
    ("what", "closed_mode", "open_mode", "rule"),
    [
        ("ledger.db", 0o400, 0o600, "ledger_read_only"),
        ("ledger.db", 0o000, 0o600, "ledger_read_only"),
        (".", 0o500, 0o700, "ledger_read_only"),
        (".", 0o000, 0o700, "ledger_io_error"),
    ],
)
def test_permissions_are_taken_away(
    ledger_of_nobody: SQLLedger, open_to_nobody: Path, *, what: str, closed_mode: int, open_mode: int, rule: str
) -> None:
    with ordinary_user():
        (open_to_nobody / what).chmod(closed_mode)
        error = refused(ledger_of_nobody)
        (open_to_nobody / what).chmod(open_mode)
        assert error.rule == rule
        check_recovered(ledger_of_nobody)


def test_the_file_is_moved_away_and_back(ledger: SQLLedger, ledger_path: Path) -> None:
    away = ledger_path.with_name("away")
    ledger_path.rename(away)
    for _ in range(2):
        assert refused(ledger).rule == "ledger_missing"
    assert not ledger_path.exists(), "a running program must not begin a new, empty ledger"
    with pytest.raises(LedgerUnavailable):
        list(ledger.entries())
    away.rename(ledger_path)
    check_recovered(ledger)


def test_the_file_is_deleted_and_restored_from_a_backup(ledger: SQLLedger, ledger_path: Path) -> None:
    backup = ledger_path.with_name("backup.db")
    with sqlite3.connect(ledger_path) as source, sqlite3.connect(backup) as target:
        source.backup(target)
    source.close()
    target.close()
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        ledger_path.with_name(name).unlink(missing_ok=True)
    assert refused(ledger).rule == "ledger_missing"
    backup.rename(ledger_path)
    check_recovered(ledger)


def test_the_file_is_deleted_in_the_middle_of_a_transaction(ledger_path: Path) -> None:
    database = SQLiteDatabase.open(ledger_path, busy_timeout=timedelta(0))
    with pytest.raises(LedgerUnavailable, match="removed or replaced") as caught, database.writing():
        ledger_path.unlink()
    database.close()
    assert caught.value.rule == "ledger_missing"


def test_the_file_is_emptied_while_it_is_in_use(ledger: SQLLedger, ledger_path: Path) -> None:
    """A ledger that is suddenly empty is not taken for a new one."""
    ledger.close()
    content = ledger_path.read_bytes()
    ledger_path.write_bytes(b"")
    error = refused(ledger)
    assert error.rule == "ledger_schema_unknown"
    assert "schema none" in error.message
    ledger.close()
    ledger_path.write_bytes(content)
    check_recovered(ledger)


@pytest.mark.parametrize("offset", [0, 4096])
def test_the_file_is_overwritten_while_it_is_open(ledger: SQLLedger, ledger_path: Path, offset: int) -> None:
    ledger.close()
    ledger.append([])  # nothing is open now: the file is whole
    good, bad = ledger_path.with_name("good"), ledger_path.with_name("bad")
    content = bytearray(ledger_path.read_bytes())
    good.write_bytes(content)
    content[offset : offset + 4000] = os.urandom(4000)
    bad.write_bytes(content)
    _overwrite(ledger_path, bad)
    assert refused(ledger).rule == "ledger_corrupt"
    _overwrite(ledger_path, good)
    check_recovered(ledger)


def _overwrite(path: Path, source: Path) -> None:
    """In place, as `cp` does; in another process, since closing the file here would drop SQLite's locks."""
    subprocess.run(["cp", source, path], check=True)


def test_a_file_that_is_no_database_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"something else\n" * 100)
    with pytest.raises(LedgerUnavailable) as caught:
        SQLLedger.open(path, writer="one")
    assert caught.value.rule == "ledger_corrupt"
    assert path.read_bytes() == b"something else\n" * 100


def test_a_directory_that_is_not_there_is_an_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match=str(tmp_path / "absent" / "ledger.db")):
        SQLLedger.open(tmp_path / "absent" / "ledger.db", writer="one")


def test_all_files_of_a_new_ledger_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with SQLLedger.open(tmp_path / "ledger.db", writer="one") as ledger:
            ledger.append([entry(1)])
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a b%20?mode=ro#ü" / "ledger.db"
    path.parent.mkdir()
    with SQLLedger.open(path, writer="one") as ledger:
        ledger.append([entry(1)])
    assert path.stat().st_size > 0
    with SQLLedger.open(f"sqlite:///{path}", writer="one") as ledger:
        assert list(ledger.entries()) == [entry(1)]


def test_commits_are_synchronous(open_ledger: OpenLedger, ledger_path: Path) -> None:
    """PRAGMA synchronous: 2 is FULL, which in WAL mode syncs each commit (https://sqlite.org/pragma.html)."""
    open_ledger()
    database = SQLiteDatabase.open(ledger_path, busy_timeout=timedelta(0))
    with database.writing() as cursor:
        settings = [_pragma(cursor, name) for name in ("synchronous", "journal_mode")]
    database.close()
    assert settings == [2, "wal"]


def _pragma(cursor: sa.engine.interfaces.DBAPICursor, name: str) -> object:
    cursor.execute(f"PRAGMA {name}")
    row = cursor.fetchone()
    assert row is not None
    return row[0]
