"""Old entries go, and what remains verifies. On every database."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citadel_py.core.errors import BadInput, LedgerUnavailable, VerificationFailed
from citadel_py.core.ledger import Head
from citadel_py.core.ledger_heads import Purpose, Seal, SignedHead
from citadel_py.store import retention
from citadel_py.store.ledger import SQLLedger
from tests.store.conftest import Clock, OpenLedger
from tests.store.things import NOW, Pki, entry

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP", 2)


@pytest.fixture
def ledger(open_ledger: OpenLedger, seal: Seal, clock: Clock) -> SQLLedger:
    clock.now = NOW + 100 * DAY
    return open_ledger("one", seal)


def fill(ledger: SQLLedger, seal: Seal, *days: int) -> None:
    """Entries of certificates that end so many days after NOW."""
    ledger.append([entry(number, not_after=NOW + each * DAY) for number, each in enumerate(days)])
    ledger.sign(seal)


def kept(ledger: SQLLedger, seal: Seal) -> list[int]:
    """When the certificates end that are still there; all of it verifies."""
    ledger.verify(seal.keys)
    return [(each.not_after - NOW) // DAY for each in ledger.entries()]


@pytest.mark.parametrize(
    ("days", "remaining"),
    [
        ([1, 2, 3, 60, 4], [60, 4]),
        ([60, 1, 2], [60, 1, 2]),
        ([1, 2, 3, 4, 5], []),
        ([50], [50]),
        ([49], []),
    ],
)
def test_the_beginning_goes_up_to_the_first_that_ended_later(
    ledger: SQLLedger, seal: Seal, days: list[int], remaining: list[int]
) -> None:
    fill(ledger, seal, *days)
    gone = len(days) - len(remaining)
    expected = {"one": gone} if gone else {}
    assert ledger.prunable(NOW + 50 * DAY) == expected
    assert ledger.prune(NOW + 50 * DAY, seal) == expected
    assert kept(ledger, seal) == remaining
    assert ledger.prune(NOW + 50 * DAY, seal) == {}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(days=st.lists(st.integers(0, 99), min_size=1, max_size=9), moments=st.lists(st.integers(0, 99), max_size=3))
def test_no_certificate_that_may_be_valid_loses_its_entry(
    open_ledger: OpenLedger, seal: Seal, clock: Clock, days: list[int], moments: list[int]
) -> None:
    clock.now = NOW + 100 * DAY
    ledger = open_ledger("one", seal)
    known = {each.serial for each in ledger.entries()}
    start = 1 + sum(chain.position for chain in ledger.verify().values())
    ledger.append([entry(start + number, not_after=NOW + each * DAY) for number, each in enumerate(days)])
    for moment in moments:
        ledger.prune(NOW + moment * DAY, seal)
    there = {each.serial for each in ledger.entries()}
    latest = max(moments, default=-1)
    assert there >= {entry(start + number).serial for number, each in enumerate(days) if each >= latest}
    assert there <= known | {entry(start + number).serial for number in range(len(days))}
    ledger.verify(seal.keys)


def test_chains_are_pruned_apart(ledger: SQLLedger, open_ledger: OpenLedger, seal: Seal) -> None:
    fill(ledger, seal, 1, 60)
    open_ledger("two", seal).append([entry(10, not_after=NOW + DAY), entry(11, not_after=NOW + DAY)])
    assert ledger.prune(NOW + 50 * DAY, seal) == {"one": 1, "two": 2}
    assert {writer: chain.first for writer, chain in ledger.verify(seal.keys).items()} == {"one": 2, "two": 3}


def test_a_chain_without_entries_goes_on_where_it_was(ledger: SQLLedger, seal: Seal) -> None:
    fill(ledger, seal, 1, 2, 3)
    ledger.prune(NOW + 50 * DAY, seal)
    ledger.append([entry(9)])
    ledger.sign(seal)
    chain = ledger.verify(seal.keys)["one"]
    assert (chain.first, chain.position, chain.signed_to) == (4, 4, 4)


def test_certificates_that_are_valid_are_never_pruned(ledger: SQLLedger, seal: Seal, clock: Clock) -> None:
    with pytest.raises(BadInput) as caught:
        ledger.prune(clock.now + timedelta(microseconds=1), seal)
    assert caught.value.rule == "ledger_prune_future"


class Interrupted(Seal):
    """Loses the database after its second step."""

    __slots__ = ()

    def sign(self, purpose: Purpose, writer: str, head: Head, *, now: datetime) -> SignedHead:
        if head.position > 4:
            raise LedgerUnavailable("gone")
        return super().sign(purpose, writer, head, now=now)


def test_what_is_interrupted_verifies_and_goes_on_later(ledger: SQLLedger, seal: Seal, pki: Pki) -> None:
    fill(ledger, seal, 1, 2, 3, 4, 5, 6, 7)
    with pytest.raises(LedgerUnavailable):
        ledger.prune(NOW + 50 * DAY, Interrupted.of(pki.intermediate))
    assert kept(ledger, seal) == [5, 6, 7]
    assert ledger.prune(NOW + 50 * DAY, seal) == {"one": 3}
    assert kept(ledger, seal) == []


def test_nothing_goes_from_a_chain_that_was_never_signed(
    ledger: SQLLedger, open_ledger: OpenLedger, seal: Seal
) -> None:
    fill(ledger, seal, 1)
    open_ledger("two").append([entry(10, not_after=NOW + DAY)])
    with pytest.raises(VerificationFailed) as caught:
        ledger.prune(NOW + 50 * DAY, seal)
    assert caught.value.rule == "ledger_unsigned"
    assert len(list(ledger.entries())) == 2
