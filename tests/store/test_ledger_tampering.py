"""Whatever is done to the record behind the ledger's back, verify finds it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from citadel_py.core.errors import LedgerUnavailable, VerificationFailed
from citadel_py.core.ledger import chain_hash
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.schema import LEDGER
from tests.store.conftest import OpenLedger
from tests.store.things import entry

CONTENT = [column.name for column in LEDGER.columns if column.name not in ("writer", "position")]


@pytest.fixture
def tampered(open_ledger: OpenLedger, ledger_path: Path) -> Iterator[sqlite3.Connection]:
    """A raw connection to a ledger with five entries of `one` and two of `two`."""
    open_ledger("one").append([entry(number) for number in range(1, 6)])
    open_ledger("two").append([entry(number) for number in range(11, 13)])
    connection = sqlite3.connect(ledger_path, isolation_level=None)
    yield connection
    connection.close()


def refused(ledger: SQLLedger) -> tuple[str, str]:
    with pytest.raises(VerificationFailed) as caught:
        ledger.verify()
    return caught.value.rule, caught.value.message


def test_an_untouched_ledger_verifies(ledger: SQLLedger, tampered: sqlite3.Connection) -> None:
    tampered.execute("VACUUM")
    assert {writer: head.position for writer, head in ledger.verify().items()} == {"one": 5, "two": 2}


@pytest.mark.parametrize("position", [1, 3, 5])
@pytest.mark.parametrize("column", CONTENT)
@pytest.mark.parametrize("value", ["'1'", "1", "x'31'", "1.5"])
def test_an_edit_is_found(
    ledger: SQLLedger, tampered: sqlite3.Connection, position: int, column: str, value: str
) -> None:
    tampered.execute(f"UPDATE ledger SET {column} = {value} WHERE writer = 'one' AND position = {position}")  # noqa: S608 - our own names
    rule, message = refused(ledger)
    assert rule in ("ledger_entry_changed", "ledger_end_missing")
    assert "'one'" in message


@pytest.mark.parametrize("position", [1, 2, 4])
def test_a_removal_is_found(ledger: SQLLedger, tampered: sqlite3.Connection, position: int) -> None:
    tampered.execute("DELETE FROM ledger WHERE writer = 'one' AND position = ?", (position,))
    rule, message = refused(ledger)
    assert (rule, message) == ("ledger_entry_missing", f"entry {position} of writer 'one' is missing")


@pytest.mark.parametrize("kept", [4, 1, 0])
def test_taking_the_newest_away_is_found(ledger: SQLLedger, tampered: sqlite3.Connection, kept: int) -> None:
    tampered.execute("DELETE FROM ledger WHERE writer = 'one' AND position > ?", (kept,))
    rule, message = refused(ledger)
    assert rule == "ledger_end_missing"
    assert message == f"the chain of writer 'one' ends with entry {kept}, and 5 were written"


def test_a_removal_that_closes_the_gap_is_found(ledger: SQLLedger, tampered: sqlite3.Connection) -> None:
    tampered.execute("DELETE FROM ledger WHERE writer = 'one' AND position = 3")
    tampered.execute("UPDATE ledger SET position = position - 1 WHERE writer = 'one' AND position > 3")
    tampered.execute("UPDATE ledger_writers SET position = 4 WHERE writer = 'one'")
    assert refused(ledger)[0] == "ledger_entry_changed"


@pytest.mark.parametrize(("this", "that"), [(1, 2), (2, 4), (4, 5)])
def test_an_exchange_of_two_entries_is_found(
    ledger: SQLLedger, tampered: sqlite3.Connection, this: int, that: int
) -> None:
    for old, new in ((this, 99), (that, this), (99, that)):
        tampered.execute("UPDATE ledger SET position = ? WHERE writer = 'one' AND position = ?", (new, old))
    assert refused(ledger)[0] == "ledger_entry_changed"


def test_an_entry_that_is_given_to_another_writer_is_found(ledger: SQLLedger, tampered: sqlite3.Connection) -> None:
    tampered.execute("UPDATE ledger SET writer = 'two', position = 3 WHERE writer = 'one' AND position = 5")
    assert refused(ledger)[0] == "ledger_entry_changed"


def test_an_entry_that_is_slipped_in_at_the_end_is_found(ledger: SQLLedger, tampered: sqlite3.Connection) -> None:
    """Even with the right hash: what was written ended before it."""
    last = tampered.execute("SELECT hash FROM ledger WHERE writer = 'one' AND position = 5").fetchone()[0]
    ledger.append([entry(6)])
    tampered.execute("UPDATE ledger_writers SET position = 5, hash = ? WHERE writer = 'one'", (last,))
    assert (
        chain_hash(bytes.fromhex(last), "one", 6, entry(6)).hex()
        in tampered.execute("SELECT hash FROM ledger WHERE position = 6").fetchone()
    )
    assert refused(ledger)[0] == "ledger_end_missing"


def test_a_writer_whose_end_was_removed_is_found(ledger: SQLLedger, tampered: sqlite3.Connection) -> None:
    tampered.execute("DELETE FROM ledger_writers WHERE writer = 'two'")
    assert refused(ledger)[0] == "ledger_end_missing"


@pytest.mark.parametrize("damage", ["hash = 'abc'", "hash = x'00'", "position = 'five'", "hash = upper(hash)"])
def test_nothing_is_added_to_a_damaged_end(ledger: SQLLedger, tampered: sqlite3.Connection, damage: str) -> None:
    tampered.execute(f"UPDATE ledger_writers SET {damage} WHERE writer = 'one'")  # noqa: S608 - our own text
    with pytest.raises(LedgerUnavailable) as caught:
        ledger.append([entry(6)])
    assert caught.value.rule == "ledger_corrupt"


def test_a_chain_is_not_begun_anew_where_its_end_was_removed(ledger: SQLLedger, tampered: sqlite3.Connection) -> None:
    head = tampered.execute("SELECT position, hash FROM ledger_writers WHERE writer = 'one'").fetchone()
    tampered.execute("DELETE FROM ledger_writers WHERE writer = 'one'")
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match=r"ledger\.position"):
            ledger.append([entry(6)])
    tampered.execute("INSERT INTO ledger_writers VALUES ('one', ?, ?)", head)
    ledger.append([entry(6)])
    assert ledger.verify()["one"].position == 6


def test_a_value_that_never_was_a_moment_is_an_error_with_the_place_when_it_is_read(
    ledger: SQLLedger, tampered: sqlite3.Connection
) -> None:
    tampered.execute("UPDATE ledger SET not_after = 'soon' WHERE writer = 'one' AND position = 2")
    with pytest.raises(LedgerUnavailable, match="entry 2 of one") as caught:
        list(ledger.entries())
    assert caught.value.rule == "ledger_corrupt"
