"""One-time join tokens: used once, in time, and never kept themselves."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from citadel_py.core.errors import CitadelError, LedgerUnavailable, Unauthenticated
from citadel_py.core.ports import JoinToken
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.schema import JOIN_TOKENS
from tests.store.conftest import Clock, OpenLedger
from tests.store.things import NOW, WEB

SECRET = b"a token that somebody was given"
DIGEST = hashlib.sha256(SECRET).digest()
EXPIRY = NOW + timedelta(minutes=10)
TOKEN = JoinToken(DIGEST, WEB, EXPIRY)
JUST_BEFORE = EXPIRY - timedelta(microseconds=1)


def test_a_token_is_found_as_it_was_added_until_just_before_it_expires(ledger: SQLLedger) -> None:
    ledger.add(TOKEN)
    assert ledger.find(DIGEST, now=NOW) == TOKEN
    assert ledger.find(DIGEST, now=JUST_BEFORE) == TOKEN


def test_a_token_works_once_also_on_the_last_moment_and_after_a_restart(
    ledger: SQLLedger, open_ledger: OpenLedger
) -> None:
    ledger.add(TOKEN)
    ledger.redeem(DIGEST, now=JUST_BEFORE)
    for again in (ledger, open_ledger()):
        assert refused(again, now=JUST_BEFORE) == "join_token_used"


def test_a_token_that_nobody_made_is_unknown(ledger: SQLLedger) -> None:
    ledger.add(TOKEN)
    for digest in (SECRET, DIGEST[:-1], DIGEST + b"\0", b""):
        assert refused(ledger, digest, now=NOW) == "join_token_unknown"


def test_a_token_that_has_expired_is_refused_and_stays_unused(ledger: SQLLedger) -> None:
    ledger.add(TOKEN)
    for moment in (EXPIRY, EXPIRY + timedelta(days=5)):
        assert refused(ledger, now=moment) == "join_token_expired"
    ledger.redeem(DIGEST, now=NOW)


def refused(ledger: SQLLedger, digest: bytes = DIGEST, *, now: datetime) -> str:
    """The rule by which both looking a token up and using it are refused."""
    with pytest.raises(Unauthenticated) as found:
        ledger.find(digest, now=now)
    with pytest.raises(Unauthenticated) as used:
        ledger.redeem(digest, now=now)
    assert found.value.rule == used.value.rule
    assert "citadel-py token create" in found.value.hints[0]
    return found.value.rule


def test_a_token_is_not_added_twice_and_not_revived(ledger: SQLLedger) -> None:
    ledger.add(TOKEN)
    ledger.redeem(DIGEST, now=NOW)
    with pytest.raises(CitadelError) as caught:
        ledger.add(JoinToken(DIGEST, WEB, EXPIRY + timedelta(days=1)))
    assert caught.value.rule == "duplicate_join_token"
    assert refused(ledger, now=NOW) == "join_token_used"


def test_old_tokens_are_forgotten_a_day_after_they_expired(ledger: SQLLedger, clock: Clock) -> None:
    ledger.add(TOKEN)
    clock.now = EXPIRY + timedelta(days=1)
    ledger.add(JoinToken(b"2" * 32, WEB, clock.now))
    assert refused(ledger, now=clock.now) == "join_token_expired"
    clock.now += timedelta(microseconds=1)
    ledger.add(JoinToken(b"3" * 32, WEB, clock.now))
    assert refused(ledger, now=clock.now) == "join_token_unknown"


def test_only_the_digest_of_a_token_is_kept(ledger: SQLLedger, raw: sa.Connection) -> None:
    ledger.add(TOKEN)
    (row,) = raw.execute(sa.select(JOIN_TOKENS)).all()
    assert row.digest == DIGEST.hex()
    assert SECRET.decode() not in str(row)


def test_of_several_threads_that_use_a_token_one_succeeds(ledger: SQLLedger, open_ledger: OpenLedger) -> None:
    others = [ledger, open_ledger("two")]
    for number in range(20):
        ledger.add(JoinToken(bytes([number]) * 32, WEB, EXPIRY))
    wins: list[int] = []

    def redeem_all(mine: SQLLedger) -> None:
        for number in range(20):
            try:
                mine.redeem(bytes([number]) * 32, now=NOW)
            except Unauthenticated:
                continue
            wins.append(number)

    threads = [threading.Thread(target=redeem_all, args=(others[number % 2],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(20))


def test_what_cannot_be_recorded_does_not_happen(ledger_path: Path) -> None:
    """Neither a new token nor the use of one; both work once the lock is gone."""
    other = sqlite3.connect(ledger_path, isolation_level=None)
    with SQLLedger.open(ledger_path, writer="one", busy_timeout=timedelta(0), now=lambda: NOW) as ledger:
        ledger.add(TOKEN)
        new = JoinToken(b"2" * 32, WEB, EXPIRY)
        uses: list[Callable[[], None]] = [lambda: ledger.add(new), lambda: ledger.redeem(DIGEST, now=NOW)]
        for use in uses:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerUnavailable) as caught:
                use()
            assert caught.value.rule == "ledger_locked"
            other.execute("ROLLBACK")
            use()
        assert ledger.find(new.digest, now=NOW) == new
        assert refused(ledger, now=NOW) == "join_token_used"
    other.close()


def test_the_table_is_checked_as_it_is_used(ledger: SQLLedger, raw: sa.Connection) -> None:
    ledger.add(TOKEN)
    ledger.check_tokens()
    assert ledger.find(DIGEST, now=NOW) == TOKEN
    raw.execute(sa.text("DROP TABLE join_tokens"))
    try:
        with pytest.raises(LedgerUnavailable):
            ledger.check_tokens()
    finally:
        JOIN_TOKENS.create(raw)
