"""What the hash chain alone cannot find: chains that were written anew. On every database."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa

from citadel_py.core.errors import VerificationFailed
from citadel_py.core.ledger import GENESIS, LedgerEntry, chain_hash
from citadel_py.core.ledger_heads import Purpose, Seal
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.rows import to_row
from citadel_py.store.schema import LEDGER, LEDGER_HEADS, WRITERS
from tests.store.conftest import Clock, OpenLedger
from tests.store.things import NOW, entry, new_pki


def rule_of(ledger: SQLLedger, seal: Seal) -> str:
    with pytest.raises(VerificationFailed) as caught:
        ledger.verify(seal.keys)
    assert "'one'" in caught.value.message
    return caught.value.rule


def write_anew(
    raw: sa.Connection, entries: Sequence[LedgerEntry], *, after: int = 0, previous: bytes = GENESIS
) -> None:
    """As somebody who knows all of this program, and has no key."""
    raw.execute(LEDGER.delete().where(LEDGER.c.writer == "one", LEDGER.c.position > after))
    for position, each in enumerate(entries, after + 1):
        previous = chain_hash(previous, "one", position, each)
        raw.execute(LEDGER.insert().values(to_row("one", position, each, previous.hex())))
    last = {"position": after + len(entries), "hash": previous.hex()}
    raw.execute(WRITERS.update().where(WRITERS.c.writer == "one").values(last))


@pytest.fixture
def signed(open_ledger: OpenLedger, seal: Seal) -> SQLLedger:
    """A ledger with five entries, signed to its end."""
    ledger = open_ledger("one", seal)
    ledger.append([entry(number) for number in range(1, 4)])
    ledger.append([entry(4), entry(5)])
    ledger.sign(seal)
    return ledger


def test_a_chain_is_signed_from_its_first_commit_on(open_ledger: OpenLedger, seal: Seal) -> None:
    ledger = open_ledger("one", seal)
    ledger.append([entry(1), entry(2)])
    ledger.append([entry(3)])
    chain = ledger.verify(seal.keys)["one"]
    assert (chain.signed_to, chain.position, chain.unsigned_since) == (2, 3, entry(3).time)


def test_signing_covers_all_that_there_is(signed: SQLLedger, seal: Seal) -> None:
    chain = signed.verify(seal.keys)["one"]
    assert (chain.signed_to, chain.position, chain.unsigned_since) == (5, 5, None)


def test_a_chain_that_was_written_anew_is_found(signed: SQLLedger, seal: Seal, raw: sa.Connection) -> None:
    write_anew(raw, [entry(number, caller="nobody") for number in range(1, 6)])
    assert rule_of(signed, seal) == "ledger_head_differs"
    raw.execute(LEDGER_HEADS.delete())
    assert signed.verify()["one"].position == 5  # the chain itself is whole


def test_a_chain_that_was_cut_and_ends_where_it_says_is_found(
    signed: SQLLedger, seal: Seal, raw: sa.Connection
) -> None:
    write_anew(raw, [entry(number) for number in range(1, 4)])
    assert rule_of(signed, seal) == "ledger_end_missing"


def test_a_chain_whose_every_trace_but_the_signature_is_gone_is_found(
    signed: SQLLedger, seal: Seal, raw: sa.Connection
) -> None:
    raw.execute(LEDGER.delete())
    raw.execute(WRITERS.delete())
    assert rule_of(signed, seal) == "ledger_end_missing"


def test_without_its_signed_head_a_chain_does_not_verify(signed: SQLLedger, seal: Seal, raw: sa.Connection) -> None:
    raw.execute(LEDGER_HEADS.delete())
    assert rule_of(signed, seal) == "ledger_unsigned"


@pytest.mark.parametrize(
    "change",
    [{"position": 4}, {"hash": "ab" * 32}, {"hash": "x"}, {"time": 0}, {"signature": "zz"}, {"purpose": "checkpoint"}],
)
def test_a_signed_head_that_was_changed_is_found(
    signed: SQLLedger, seal: Seal, raw: sa.Connection, change: dict[str, object]
) -> None:
    raw.execute(LEDGER_HEADS.update().values(change))
    assert rule_of(signed, seal) == "ledger_signature_invalid"


def test_the_signed_head_of_another_chain_is_of_no_use(
    signed: SQLLedger, open_ledger: OpenLedger, seal: Seal, raw: sa.Connection
) -> None:
    open_ledger("two", seal).append([entry(11)])
    raw.execute(LEDGER_HEADS.delete().where(LEDGER_HEADS.c.writer == "one"))
    raw.execute(LEDGER_HEADS.update().values(writer="one"))
    assert rule_of(signed, seal) == "ledger_signature_invalid"


@pytest.mark.parametrize("known", [6, 7])
def test_what_is_written_anew_while_the_service_runs_is_not_signed(
    signed: SQLLedger, seal: Seal, raw: sa.Connection, known: int
) -> None:
    """Also after the last signature: the service remembers the chain's end, and others pass through it."""
    signed.append([entry(number) for number in range(6, known + 1)])
    fifth = raw.execute(sa.select(LEDGER.c.hash).where(LEDGER.c.position == 5)).scalar_one()
    write_anew(raw, [entry(6, caller="nobody"), entry(7)], after=5, previous=bytes.fromhex(fifth))
    signed.append([entry(8)])
    with pytest.raises(VerificationFailed) as caught:
        signed.sign(seal)
    assert caught.value.rule == "ledger_head_differs"


def test_a_chain_that_is_cut_while_the_service_runs_is_not_signed(
    signed: SQLLedger, seal: Seal, raw: sa.Connection
) -> None:
    signed.append([entry(6), entry(7), entry(8)])
    fifth = raw.execute(sa.select(LEDGER.c.hash).where(LEDGER.c.position == 5)).scalar_one()
    write_anew(raw, [], after=5, previous=bytes.fromhex(fifth))
    signed.append([entry(9)])
    with pytest.raises(VerificationFailed) as caught:
        signed.sign(seal)
    assert caught.value.rule == "ledger_end_missing"


def test_another_process_continues_what_is_signed(signed: SQLLedger, open_ledger: OpenLedger, seal: Seal) -> None:
    again = open_ledger("one", seal)
    again.append([entry(6)])
    signed.append([entry(7)])
    for ledger in (again, signed):
        ledger.sign(seal)
        assert ledger.verify(seal.keys)["one"].signed_to == 7


def test_a_chain_that_was_never_signed_is_signed_only_when_that_is_meant(
    open_ledger: OpenLedger, seal: Seal, ledger: SQLLedger
) -> None:
    ledger.append([entry(1)])
    for signer in (ledger, open_ledger("one", seal)):
        with pytest.raises(VerificationFailed) as caught:
            signer.sign(seal)
        assert caught.value.rule == "ledger_unsigned"
    assert [each.head.position for each in ledger.sign_all(seal, adopt=True)] == [1]
    assert ledger.verify(seal.keys)["one"].signed_to == 1


def test_there_is_nothing_to_sign_without_entries(ledger: SQLLedger, seal: Seal) -> None:
    assert ledger.sign(seal) is None
    assert ledger.sign_all(seal) == []
    assert ledger.verify(seal.keys) == {}


def test_a_chain_that_cannot_be_signed_does_not_keep_the_others_from_it(
    signed: SQLLedger, open_ledger: OpenLedger, seal: Seal
) -> None:
    open_ledger("a").append([entry(11)])  # never signed
    signed.append([entry(6)])
    with pytest.raises(VerificationFailed, match="'a'"):
        signed.sign_all(seal)
    assert {each.writer: each.head.position for each in signed.statements()} == {"one": 6}


def test_a_new_authority_signs_all_chains_while_it_knows_the_old_one(
    signed: SQLLedger, open_ledger: OpenLedger, seal: Seal, clock: Clock
) -> None:
    open_ledger("two", seal).append([entry(11)])
    clock.now += timedelta(days=1)
    signed.prune(NOW + timedelta(hours=12), seal)
    successor = new_pki()
    stranger = Seal.of(successor.intermediate)
    with pytest.raises(VerificationFailed) as caught:
        signed.sign_all(stranger)
    assert caught.value.rule == "ledger_authority_unknown"
    signed.sign_all(Seal.of(successor.intermediate, [seal.authority.certificate]))
    chains = signed.verify(stranger.keys)
    assert {writer: (chain.first, chain.position) for writer, chain in chains.items()} == {"one": (6, 5), "two": (2, 1)}


def test_signing_again_changes_nothing_where_nothing_is_new(signed: SQLLedger, seal: Seal, clock: Clock) -> None:
    before = signed.statements()
    clock.now += timedelta(hours=1)
    signed.sign(seal)
    assert signed.statements() == before


def test_signing_goes_on_beside_appending(open_ledger: OpenLedger, seal: Seal) -> None:
    ledger, other = open_ledger("one", seal), open_ledger("one", seal)
    ledger.append([entry(0)])

    def append(mine: SQLLedger, first: int) -> None:
        for number in range(first, first + 40):
            mine.append([entry(number)])

    threads = [threading.Thread(target=append, args=(ledger, 100)), threading.Thread(target=append, args=(other, 200))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ledger.sign(seal)
        other.sign(seal)
    ledger.sign(seal)
    chain = ledger.verify(seal.keys)["one"]
    assert chain.signed_to == chain.position == 81


def test_a_statement_has_one_place_for_each_purpose(signed: SQLLedger, seal: Seal, clock: Clock) -> None:
    clock.now += timedelta(days=1)
    signed.append([entry(6, not_after=NOW + timedelta(days=9))])
    for _ in range(2):
        signed.prune(NOW + timedelta(hours=12), seal)
        signed.sign(seal)
    assert [(each.purpose, each.head.position) for each in signed.statements()] == [
        (Purpose.CHECKPOINT, 5),
        (Purpose.HEAD, 6),
    ]
