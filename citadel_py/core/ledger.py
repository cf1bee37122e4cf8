"""What the ledger records, and the hash chain that makes a change to it visible. No storage here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter

GENESIS = bytes(32)

# What can happen to a certificate; each at most once.
ISSUED, REVOKED = "issued", "revoked"


@dataclass(frozen=True, slots=True)
class Head:
    """A place in a writer's chain. Kept somewhere else, it proves later that nothing before it changed."""

    position: int
    hash: str  # lower-case hex


START = Head(0, GENESIS.hex())


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One event in the life of one certificate. Times are aware UTC; hex is lower case."""

    kind: str  # ISSUED or REVOKED
    serial: str
    spiffe_id: str
    caller: str
    method: str
    public_key_sha256: str
    authority_id: str
    not_before: datetime
    not_after: datetime
    request_id: str
    time: datetime


_NAMES = tuple(each.name for each in fields(LedgerEntry))
_values = attrgetter(*_NAMES)  # a quarter of the cost of dataclasses.asdict, which copies deeply


def chain_hash(previous: bytes, writer: str, position: int, entry: LedgerEntry) -> bytes:
    """SHA-256 that binds an entry to everything that this writer recorded before it.

    `position` counts a writer's entries from 1 without a gap; `previous` is the hash of the entry
    before, GENESIS for the first.
    """
    record = {"writer": writer, "position": position, **dict(zip(_NAMES, _values(entry), strict=True))}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), default=canonical_time)
    return hashlib.sha256(previous + text.encode()).digest()


def canonical_time(value: object) -> str:
    """A moment as the chain and signatures cover it: `2026-03-04T05:06:07.890123+00:00`."""
    if not isinstance(value, datetime):
        raise TypeError(f"no canonical form for {type(value).__name__}")
    return value.isoformat(timespec="microseconds")
