"""Whatever is done to the record behind the ledger's back, verify finds it. On every database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from citadel_py.core.errors import LedgerUnavailable, VerificationFailed
from citadel_py.core.ledger import chain_hash
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.schema import LEDGER
from tests.store.conftest import OpenLedger
from tests.store.things import entry

CONTENT = [column.name for column in LEDGER.columns if column.name not in ("writer", "position")]
MOMENTS = ("not_before", "not_after", "time")

Tamper = Callable[..., sa.CursorResult[Any]]


@pytest.fixture
def tamper(open_ledger: OpenLedger, raw: sa.Connection) -> Tamper:
    """Runs SQL on a ledger with five entries of `one` and two of `two`."""
    open_ledger("one").append([entry(number) for number in range(1, 6)])
    open_ledger("two").append([entry(number) for number in range(11, 13)])
    return lambda statement, **values: raw.execute(sa.text(statement), values)


def refused(ledger: SQLLedger) -> tuple[str, str]:
    with pytest.raises(VerificationFailed) as caught:
        ledger.verify()
    return caught.value.rule, caught.value.message


def test_an_untouched_ledger_verifies(ledger: SQLLedger, tamper: Tamper) -> None:
    tamper("VACUUM")
    assert {writer: head.position for writer, head in ledger.verify().items()} == {"one": 5, "two": 2}


def values_for(column: str) -> list[str]:
    return ["1", "-62135596800000000"] if column in MOMENTS else ["'1'", "''"]


@pytest.mark.parametrize("position", [1, 3, 5])
@pytest.mark.parametrize(("column", "value"), [(column, value) for column in CONTENT for value in values_for(column)])
def test_an_edit_is_found(ledger: SQLLedger, tamper: Tamper, position: int, column: str, value: str) -> None:
    tamper(f"UPDATE ledger SET {column} = {value} WHERE writer = 'one' AND position = {position}")  # noqa: S608 - our own names
    rule, message = refused(ledger)
    assert rule in ("ledger_entry_changed", "ledger_end_missing")
    assert "'one'" in message


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("column", CONTENT)
@pytest.mark.parametrize("value", ["'1'", "1", "x'31'", "1.5", "9223372036854775807"])
def test_an_edit_to_another_type_is_found(ledger: SQLLedger, tamper: Tamper, column: str, value: str) -> None:
    """SQLite takes any type in any column."""
    tamper(f"UPDATE ledger SET {column} = {value} WHERE writer = 'one' AND position = 3")  # noqa: S608 - our own names
    assert refused(ledger)[0] == "ledger_entry_changed"


@pytest.mark.parametrize("position", [1, 2, 4])
def test_a_removal_is_found(ledger: SQLLedger, tamper: Tamper, position: int) -> None:
    tamper("DELETE FROM ledger WHERE writer = 'one' AND position = :p", p=position)
    rule, message = refused(ledger)
    assert (rule, message) == ("ledger_entry_missing", f"entry {position} of writer 'one' is missing")


@pytest.mark.parametrize("kept", [4, 1, 0])
def test_taking_the_newest_away_is_found(ledger: SQLLedger, tamper: Tamper, kept: int) -> None:
    tamper("DELETE FROM ledger WHERE writer = 'one' AND position > :p", p=kept)
    rule, message = refused(ledger)
    assert rule == "ledger_end_missing"
    assert message == f"the chain of writer 'one' ends with entry {kept}, and 5 were written"


def test_a_removal_that_closes_the_gap_is_found(ledger: SQLLedger, tamper: Tamper) -> None:
    tamper("DELETE FROM ledger WHERE writer = 'one' AND position = 3")
    for position in (4, 5):
        tamper("UPDATE ledger SET position = position - 1 WHERE writer = 'one' AND position = :p", p=position)
    tamper("UPDATE ledger_writers SET position = 4 WHERE writer = 'one'")
    assert refused(ledger)[0] == "ledger_entry_changed"


@pytest.mark.parametrize(("this", "that"), [(1, 2), (2, 4), (4, 5)])
def test_an_exchange_of_two_entries_is_found(ledger: SQLLedger, tamper: Tamper, this: int, that: int) -> None:
    for old, new in ((this, 99), (that, this), (99, that)):
        tamper("UPDATE ledger SET position = :new WHERE writer = 'one' AND position = :old", new=new, old=old)
    assert refused(ledger)[0] == "ledger_entry_changed"


def test_an_entry_that_is_given_to_another_writer_is_found(ledger: SQLLedger, tamper: Tamper) -> None:
    tamper("UPDATE ledger SET writer = 'two', position = 3 WHERE writer = 'one' AND position = 5")
    assert refused(ledger)[0] == "ledger_entry_changed"


def test_an_entry_that_is_slipped_in_at_the_end_is_found(ledger: SQLLedger, tamper: Tamper) -> None:
    """Even with the right hash: what was written ended before it."""
    last = tamper("SELECT hash FROM ledger WHERE writer = 'one' AND position = 5").scalar_one()
    ledger.append([entry(6)])
    tamper("UPDATE ledger_writers SET position = 5, hash = :last WHERE writer = 'one'", last=last)
    forged = tamper("SELECT hash FROM ledger WHERE position = 6").scalar_one()
    assert forged == chain_hash(bytes.fromhex(str(last)), "one", 6, entry(6)).hex()
    assert refused(ledger)[0] == "ledger_end_missing"


def test_a_writer_whose_end_was_removed_is_found(ledger: SQLLedger, tamper: Tamper) -> None:
    tamper("DELETE FROM ledger_writers WHERE writer = 'two'")
    assert refused(ledger)[0] == "ledger_end_missing"


@pytest.mark.parametrize("damage", ["hash = 'abc'", "hash = upper(hash)", "hash = ''"])
def test_nothing_is_added_to_a_damaged_end(ledger: SQLLedger, tamper: Tamper, damage: str) -> None:
    tamper(f"UPDATE ledger_writers SET {damage} WHERE writer = 'one'")  # noqa: S608 - our own text
    with pytest.raises(LedgerUnavailable) as caught:
        ledger.append([entry(6)])
    assert caught.value.rule == "ledger_corrupt"


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("damage", ["hash = x'00'", "position = 'five'"])
def test_nothing_is_added_to_an_end_of_another_type(ledger: SQLLedger, tamper: Tamper, damage: str) -> None:
    test_nothing_is_added_to_a_damaged_end(ledger, tamper, damage)


def test_a_chain_is_not_begun_anew_where_its_end_was_removed(ledger: SQLLedger, tamper: Tamper) -> None:
    head = tamper("SELECT position, hash FROM ledger_writers WHERE writer = 'one'").one()
    tamper("DELETE FROM ledger_writers WHERE writer = 'one'")
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match=r"ledger\.position|ledger_pkey"):
            ledger.append([entry(6)])
    tamper("INSERT INTO ledger_writers VALUES ('one', :position, :hash)", **head._asdict())
    ledger.append([entry(6)])
    assert ledger.verify()["one"].position == 6


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_value_that_never_was_a_moment_is_an_error_with_the_place_when_it_is_read(
    ledger: SQLLedger, tamper: Tamper
) -> None:
    tamper("UPDATE ledger SET not_after = 'soon' WHERE writer = 'one' AND position = 2")
    with pytest.raises(LedgerUnavailable, match="entry 2 of one") as caught:
        list(ledger.entries())
    assert caught.value.rule == "ledger_corrupt"
