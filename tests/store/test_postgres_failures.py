"""Whatever happens to the server: an error that says what, nothing half-written, and work goes on by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine.interfaces import DBAPICursor

from citadel_py.core.errors import InvalidConfiguration, LedgerUnavailable
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.postgres import PostgresDatabase
from tests.store.postgres_server import USER, PostgresServer
from tests.store.things import NOW, entry

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
def ledger(postgres_url: str) -> Iterator[SQLLedger]:
    """One with an entry, that does not wait for others."""
    with SQLLedger.open(postgres_url, writer="one", busy_timeout=timedelta(milliseconds=20)) as opened:
        opened.append([entry(1)])
        yield opened


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def test_the_session_is_ended_between_two_transactions(ledger: SQLLedger, admin: psycopg.Connection) -> None:
    _end_other_sessions(admin)
    assert refused(ledger).rule == "ledger_unreachable"
    check_recovered(ledger)


def test_the_session_is_ended_in_a_transaction(postgres_url: str, admin: psycopg.Connection) -> None:
    database = PostgresDatabase.open(postgres_url, busy_timeout=timedelta(seconds=1))
    with pytest.raises(LedgerUnavailable) as caught, database.writing() as cursor:
        _delete_all(cursor, after=lambda: _end_other_sessions(admin))
    assert caught.value.rule == "ledger_unreachable"
    with database.reading() as cursor:
        cursor.execute("SELECT 1")
    database.close()


def _delete_all(cursor: DBAPICursor, after: Callable[[], None]) -> None:
    after()
    cursor.execute("DELETE FROM ledger")


def _end_other_sessions(admin: psycopg.Connection) -> None:
    """Those of the ledger's program, and wait until they are gone."""
    ours = "FROM pg_stat_activity WHERE application_name = 'citadel-py'"
    admin.execute(f"SELECT pg_terminate_backend(pid) {ours}".encode())
    while admin.execute(f"SELECT 1 {ours}".encode()).fetchall():
        pass


def test_the_server_stops_and_comes_back(ledger: SQLLedger, postgres_server: PostgresServer) -> None:
    postgres_server.stop()
    try:
        for _ in range(2):
            error = refused(ledger)
            assert error.rule == "ledger_unreachable"
            assert "the server runs" in error.hints[0]
    finally:
        postgres_server.start()
    check_recovered(ledger)


@pytest.mark.parametrize("lock", ["LOCK TABLE ledger", "SELECT * FROM ledger_writers FOR UPDATE"])
def test_locked_by_another_session(ledger: SQLLedger, admin: psycopg.Connection, lock: str) -> None:
    with admin.transaction():
        admin.execute(lock.encode())
        assert refused(ledger).rule == "ledger_locked"
    check_recovered(ledger)


@pytest.mark.parametrize(
    ("state", "rule"),
    [
        ("40001", "ledger_conflict"),
        ("40P01", "ledger_conflict"),
        ("53100", "ledger_disk_full"),
        ("53200", "ledger_unreachable"),
        ("57014", "ledger_locked"),
        ("58030", "ledger_io_error"),
        ("XX001", "ledger_corrupt"),
        ("25006", "ledger_read_only"),
        ("P0001", "ledger_unavailable"),
        ("23505", "ledger_unavailable"),
    ],
)
def test_what_the_server_says_becomes_a_rule(
    ledger: SQLLedger, admin: psycopg.Connection, state: str, rule: str
) -> None:
    """A trigger says it, where the server itself would."""
    admin.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'a test' USING ERRCODE = '{state}'; END $$".encode()
    )
    admin.execute("CREATE TRIGGER fail BEFORE INSERT ON ledger EXECUTE FUNCTION fail()")
    try:
        assert refused(ledger).rule == rule
    finally:
        admin.execute("DROP TRIGGER fail ON ledger")
        admin.execute("DROP FUNCTION fail()")
    check_recovered(ledger)


def test_the_database_becomes_read_only(
    ledger: SQLLedger, admin: psycopg.Connection, postgres_server: PostgresServer
) -> None:
    postgres_server.execute("ALTER DATABASE ledger SET default_transaction_read_only = on")
    _end_other_sessions(admin)
    try:
        refused(ledger)
        assert refused(ledger).rule == "ledger_read_only"
        assert list(ledger.entries()) == [entry(1)]
    finally:
        postgres_server.execute("ALTER DATABASE ledger RESET default_transaction_read_only")
    ledger.close()
    check_recovered(ledger)


def test_a_role_that_may_not_write(ledger: SQLLedger, admin: psycopg.Connection, postgres_url: str) -> None:
    admin.execute("DROP ROLE IF EXISTS reader")
    admin.execute("CREATE ROLE reader LOGIN")
    admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    try:
        with SQLLedger.open(postgres_url.replace(USER, "reader"), writer="two") as reader:
            assert refused(reader).rule == "ledger_read_only"
            assert list(reader.entries()) == [entry(1)]
    finally:
        admin.execute("DROP OWNED BY reader")
        admin.execute("DROP ROLE reader")
    check_recovered(ledger)


def test_the_tables_go_away_and_come_back(ledger: SQLLedger, admin: psycopg.Connection) -> None:
    admin.execute("ALTER TABLE ledger RENAME TO elsewhere")
    assert refused(ledger).rule == "ledger_missing"
    admin.execute("ALTER TABLE elsewhere RENAME TO ledger")
    check_recovered(ledger)


def test_a_server_that_answers_before_it_has_written_is_told_not_to(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    postgres_server.execute("ALTER DATABASE ledger SET synchronous_commit = off")
    try:
        database = PostgresDatabase.open(postgres_url, busy_timeout=timedelta(seconds=1))
        with database.writing() as cursor:
            cursor.execute("SHOW synchronous_commit")
            assert cursor.fetchone() == ("on",)
        database.close()
    finally:
        postgres_server.execute("ALTER DATABASE ledger RESET synchronous_commit")


def test_transactions_are_isolated_as_they_are_here_whatever_the_server_prefers(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """Two writers of one chain take turns; under serializable one of them would fail."""
    postgres_server.execute("ALTER DATABASE ledger SET default_transaction_isolation = serializable")
    try:
        with SQLLedger.open(postgres_url, writer="one") as one, SQLLedger.open(postgres_url, writer="one") as two:
            for number in range(6):
                (one, two)[number % 2].append([entry(number)])
            assert one.verify()["one"].position == 6
    finally:
        postgres_server.execute("ALTER DATABASE ledger RESET default_transaction_isolation")


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("postgresql://somebody:secret@host/db", "ledger_password"),
        ("postgres://host/db?password=secret", "ledger_password"),
        ("postgresql://host/db?colour=red", "ledger_url"),
    ],
)
def test_an_address_that_is_refused_is_not_repeated(url: str, rule: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        SQLLedger.open(url, writer="one")
    assert caught.value.rule == rule
    assert "secret" not in str(caught.value)


def test_without_the_driver_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("citadel_py.store.postgres.importlib.import_module", absent)
    with pytest.raises(InvalidConfiguration) as caught:
        SQLLedger.open("postgresql:///db", writer="one")
    assert caught.value.rule == "ledger_driver_missing"
    assert caught.value.hints == ("pip install 'citadel-py[postgres]'",)


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable) as caught:
        SQLLedger.open(f"postgresql:///db?host={tmp_path}", writer="one", now=lambda: NOW)
    assert caught.value.rule == "ledger_unreachable"
