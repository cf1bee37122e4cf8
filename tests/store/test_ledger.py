"""The ledger as its callers see it. Every test here holds for any database that it may be kept in."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citadel_py.core.errors import BadInput, CitadelError, InvalidConfiguration, LedgerUnavailable
from citadel_py.core.ledger import GENESIS, LedgerEntry, chain_hash
from citadel_py.core.policy import Method
from citadel_py.core.ports import Ledger, TokenStore
from citadel_py.core.spiffe import SpiffeID
from citadel_py.store.ledger import SQLLedger
from tests.store.conftest import OpenLedger
from tests.store.things import NOW, WEB, entry


def test_it_is_what_the_ports_ask_for(ledger: SQLLedger) -> None:
    ports: tuple[Ledger, TokenStore] = (ledger, ledger)
    assert all(ports)


def test_entries_come_back_as_they_were_appended(ledger: SQLLedger, open_ledger: OpenLedger) -> None:
    entries = [entry(number) for number in range(5)]
    ledger.append(entries[:1])
    ledger.append(entries[1:])
    assert list(ledger.entries()) == entries
    assert list(open_ledger().entries()) == entries


moments = st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive by contract
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(caller=texts, method=texts, request=texts, times=st.tuples(moments, moments, moments))
def test_any_text_and_any_moment_survive_and_verify(
    ledger: SQLLedger, caller: str, method: str, request: str, times: tuple[datetime, datetime, datetime]
) -> None:
    number = 1 + sum(chain.position for chain in ledger.verify().values())
    appended = entry(
        number, caller=caller, method=method, request_id=request, not_before=times[0], not_after=times[1], time=times[2]
    )
    ledger.append([appended])
    assert list(ledger.entries(serial=appended.serial)) == [appended]
    assert ledger.verify()["one"].position == number


def test_the_method_of_a_caller_is_recorded_as_its_text(ledger: SQLLedger) -> None:
    ledger.append([entry(1, method=Method.JOIN_TOKEN)])
    assert [type(each.method) for each in ledger.entries()] == [str]
    assert list(ledger.entries()) == [entry(1, method="join_token")]
    assert ledger.verify()["one"].position == 1


def test_appending_nothing_does_nothing(ledger: SQLLedger) -> None:
    ledger.append([])
    assert ledger.verify() == {}


def test_each_writer_has_a_chain_of_its_own_from_genesis(open_ledger: OpenLedger) -> None:
    one, two = open_ledger("one"), open_ledger("two")
    one.append([entry(1)])
    two.append([entry(2)])
    one.append([entry(3)])
    heads = two.verify()
    first = chain_hash(GENESIS, "one", 1, entry(1))
    assert (heads["one"].position, heads["one"].hash) == (2, chain_hash(first, "one", 2, entry(3)).hex())
    assert (heads["two"].position, heads["two"].hash) == (1, chain_hash(GENESIS, "two", 1, entry(2)).hex())


def test_two_ledgers_with_one_writers_name_add_to_one_chain(open_ledger: OpenLedger) -> None:
    one, again = open_ledger("offline"), open_ledger("offline")
    for number in range(6):
        (one if number % 2 else again).append([entry(number)])
    assert one.verify()["offline"].position == 6


def test_threads_may_share_a_ledger(ledger: SQLLedger) -> None:
    def append(first: int) -> None:
        for number in range(first, first + 20):
            ledger.append([entry(number)])

    threads = [threading.Thread(target=append, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.verify()["one"].position == 80


@pytest.mark.parametrize("batch", [[1], [2, 1, 3], [2, 2]])
def test_a_serial_is_issued_once_and_a_batch_with_a_second_one_is_undone(
    ledger: SQLLedger, open_ledger: OpenLedger, batch: list[int]
) -> None:
    ledger.append([entry(1)])
    with pytest.raises(CitadelError, match="randomness") as caught:
        ledger.append([entry(number) for number in batch])
    assert caught.value.rule == "duplicate_serial"
    assert not isinstance(caught.value, LedgerUnavailable)
    open_ledger("two").append([entry(8)])  # nothing is locked, although the error is still held
    ledger.append([entry(9)])
    assert list(ledger.entries()) == [entry(1), entry(8), entry(9)]
    assert ledger.verify()["one"].position == 2


def test_another_event_of_the_same_certificate_is_no_duplicate(ledger: SQLLedger) -> None:
    ledger.append([entry(1), entry(1, kind="revoked", time=NOW + timedelta(hours=1))])
    assert [each.kind for each in ledger.entries(serial=entry(1).serial)] == ["issued", "revoked"]


@pytest.mark.parametrize("moment", [NOW.replace(tzinfo=None), NOW.astimezone(timezone(timedelta(hours=2)))])
@pytest.mark.parametrize("name", ["not_before", "not_after", "time"])
def test_a_moment_that_is_not_utc_is_refused(ledger: SQLLedger, name: str, moment: datetime) -> None:
    with pytest.raises(ValueError, match="not aware UTC"):
        ledger.append([entry(1), entry(2, **{name: moment})])
    assert list(ledger.entries()) == []


@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
def test_text_that_not_every_database_keeps_is_refused_and_nothing_recorded(ledger: SQLLedger, text: str) -> None:
    with pytest.raises(BadInput) as caught:
        ledger.append([entry(1), entry(2, caller=text)])
    assert caught.value.rule == "ledger_text"
    assert list(ledger.entries()) == []


def test_entries_are_found_by_time_identity_and_serial(ledger: SQLLedger) -> None:
    other = SpiffeID.parse("spiffe://example.org/ns/default/sa/other")
    old, new, foreign = entry(1), entry(2, time=NOW + timedelta(hours=1)), entry(3, spiffe_id=str(other))
    ledger.append([new, old, foreign])
    assert list(ledger.entries()) == [old, foreign, new]
    assert list(ledger.entries(since=new.time)) == [new]
    assert list(ledger.entries(since=new.time + timedelta(microseconds=1))) == []
    assert list(ledger.entries(spiffe_id=other)) == [foreign]
    assert list(ledger.entries(spiffe_id=WEB, since=old.time)) == [old, new]
    assert list(ledger.entries(serial=old.serial.upper())) == [old]
    assert list(ledger.entries(serial="0")) == []


def test_reading_takes_its_time_while_others_write(ledger: SQLLedger) -> None:
    """Many entries of one moment, so that pages begin and end within it."""
    first = [entry(number, time=NOW) for number in range(1203)]
    ledger.append(first)
    reader = ledger.entries()
    seen = [next(reader)]
    ledger.append([entry(5000, time=NOW + timedelta(hours=1))])
    seen += reader
    assert sorted(seen, key=_number) == [*first, entry(5000, time=NOW + timedelta(hours=1))]


def _number(each: LedgerEntry) -> int:
    return int(each.serial, 16)


def test_a_closed_ledger_opens_again_when_it_is_used(ledger: SQLLedger) -> None:
    ledger.append([entry(1)])
    ledger.close()
    ledger.append([entry(2)])
    assert ledger.verify()["one"].position == 2


def test_a_database_that_is_not_supported_is_named() -> None:
    with pytest.raises(InvalidConfiguration, match="mysql") as caught:
        SQLLedger.open("mysql://somewhere/db", writer="one")
    assert caught.value.rule == "ledger_database"
