"""The ledger's tables: migrations and metadata agree, and making them is all or nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from citadel_py.core.errors import LedgerUnavailable
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.schema import METADATA, SCHEMA_VERSION, from_microseconds, to_microseconds
from tests.store.things import entry


@pytest.fixture
def connection(ledger_path: Path) -> Iterator[sa.Connection]:
    engine = sa.create_engine(f"sqlite:///{ledger_path}")
    with engine.connect() as opened:
        yield opened
    engine.dispose()


def test_the_migrations_make_what_the_code_expects(connection: sa.Connection) -> None:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    assert compare_metadata(context, METADATA) == []


def test_the_code_expects_the_newest_migration() -> None:
    import citadel_py.store.migrations

    scripts = ScriptDirectory(str(Path(str(citadel_py.store.migrations.__file__)).parent))
    assert scripts.get_heads() == [SCHEMA_VERSION]


def test_migrations_are_loaded_only_where_there_is_something_to_migrate(ledger_path: Path) -> None:
    script = (
        "import sys, citadel_py.store.ledger as l\n"
        "l.SQLLedger.open(sys.argv[1], writer='one').verify()\n"
        "print('alembic' in sys.modules)"
    )
    new = ledger_path.with_name("new.db")
    answers = [
        subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True).stdout.strip()
        for path in (ledger_path, new)
    ]
    assert answers == ["False", "True"]


def test_a_migration_that_fails_leaves_nothing_and_is_done_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"

    def fail(*_: object) -> None:
        raise sa.exc.OperationalError("CREATE INDEX", {}, sqlite3.OperationalError("no room"))

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_index", fail)
        with pytest.raises(LedgerUnavailable, match="no room"):
            SQLLedger.open(path, writer="one")
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT name FROM sqlite_master").fetchall() == []
    raw.close()
    with SQLLedger.open(path, writer="one") as ledger:
        ledger.append([entry(1)])


def test_a_ledger_of_a_newer_program_is_left_alone(ledger_path: Path) -> None:
    raw = sqlite3.connect(ledger_path)
    with raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerUnavailable) as caught:
        SQLLedger.open(ledger_path, writer="one")
    assert caught.value.rule == "ledger_schema_unknown"
    assert "newer" in caught.value.hints[0]
    assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    raw.close()


def test_an_empty_file_that_somebody_made_becomes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    with SQLLedger.open(tmp_path / "ledger.db", writer="one") as ledger:
        ledger.append([entry(1)])
        assert list(ledger.entries()) == [entry(1)]


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1950, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
)
def test_moments_are_exact(moment: datetime) -> None:
    number = to_microseconds(moment)
    assert from_microseconds(number) == moment
    assert from_microseconds(number - 1) == moment - timedelta(microseconds=1)
    assert abs(number) < 2**63
