from __future__ import annotations

from dataclasses import asdict, fields
from datetime import datetime, timedelta

import pytest

from citadel_py.core.ledger import GENESIS, LedgerEntry, chain_hash


@pytest.fixture
def entry(now: datetime) -> LedgerEntry:
    return LedgerEntry(
        kind="issued",
        serial="0a",
        spiffe_id="spiffe://example.org/web",
        caller="offline:root@host",
        method="offline",
        public_key_sha256="11",
        authority_id="22",
        not_before=now,
        not_after=now + timedelta(hours=1),
        request_id="33",
        time=now,
    )


@pytest.mark.parametrize("name", [each.name for each in fields(LedgerEntry)])
def test_a_change_of_any_field_changes_the_hash(entry: LedgerEntry, name: str) -> None:
    value = getattr(entry, name)
    changed = value + timedelta(microseconds=1) if isinstance(value, datetime) else value + "x"
    edited = LedgerEntry(**{**asdict(entry), name: changed})
    assert chain_hash(GENESIS, "w", 1, edited) != chain_hash(GENESIS, "w", 1, entry)


def test_the_hash_binds_writer_position_and_everything_before(entry: LedgerEntry) -> None:
    first = chain_hash(GENESIS, "w", 1, entry)
    others = [chain_hash(GENESIS, "v", 1, entry), chain_hash(GENESIS, "w", 2, entry), chain_hash(first, "w", 1, entry)]
    assert len({first, *others}) == 4
    assert chain_hash(GENESIS, "w", 1, entry) == first
