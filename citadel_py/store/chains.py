"""Verifying the whole ledger: every chain from its beginning, or from its checkpoint, to its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, select

from citadel_py.core.keys import PublicKey
from citadel_py.core.ledger import START, Head
from citadel_py.core.ledger_heads import Purpose, SignedHead
from citadel_py.store.database import Database
from citadel_py.store.rows import check_end, check_not_shorter, check_places, follow, moment_of, never_signed, to_signed
from citadel_py.store.schema import LEDGER, LEDGER_HEADS, WRITERS

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Chain:
    """A writer's chain that verifies: its end, and what was signed about it."""

    writer: str
    head: Head
    signed: SignedHead | None
    checkpoint: SignedHead | None
    unsigned_since: datetime | None  # when the first entry was recorded that no statement covers yet

    @property
    def position(self) -> int:
        return self.head.position

    @property
    def hash(self) -> str:
        return self.head.hash

    @property
    def first(self) -> int:
        """The position of the oldest entry that is kept."""
        return self.start.position + 1

    @property
    def start(self) -> Head:
        return self.checkpoint.head if self.checkpoint else START

    @property
    def signed_to(self) -> int:
        """The position up to which an authority vouches for the chain."""
        return max(self.start.position, self.signed.head.position if self.signed else 0)


def verify(
    database: Database, keys: Mapping[str, PublicKey] | None, earlier: Mapping[str, Head] | None = None
) -> Mapping[str, Chain]:
    """Walk every chain. With `keys` each must also be signed by one of these authorities.

    `earlier` are ends of chains, by writer, that were kept elsewhere: the chains must still pass through
    them, as far as they were not pruned. Raises VerificationFailed with the rule, writer and position;
    LedgerUnavailable.
    """
    with database.snapshot() as connection:
        ends = {row[0]: Head(row[1], row[2]) for row in connection.execute(select(WRITERS))}
        known = _Known(_statements(connection, keys), earlier or {})
        found: dict[str, Chain] = {}
        query = select(LEDGER).order_by(LEDGER.c.writer, LEDGER.c.position)
        with connection.execution_options(yield_per=_PAGE).execute(query) as rows:
            for writer, entries in groupby(rows, key=lambda row: row[0]):
                found[writer] = known.walked(writer, entries)
    for writer in sorted(ends.keys() | found.keys() | known.writers, key=str):
        chain = found[writer] = found.get(writer) or known.walked(writer, ())
        check_end(writer, ends.get(writer, START), chain.head)
        known.check_end(chain)
        if keys is not None and chain.signed_to == 0:
            raise never_signed(writer)
    return found


def _statements(
    connection: Connection, keys: Mapping[str, PublicKey] | None
) -> Mapping[tuple[Purpose, str], SignedHead]:
    statements = [to_signed(row) for row in connection.execute(select(LEDGER_HEADS))]
    for each in statements:
        if keys is not None:
            each.check(keys)
    return {(each.purpose, each.writer): each for each in statements}


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of the chains besides their entries."""

    signed: Mapping[tuple[Purpose, str], SignedHead]
    earlier: Mapping[str, Head]

    @property
    def writers(self) -> frozenset[str]:
        return frozenset({writer for _, writer in self.signed} | self.earlier.keys())

    def walked(self, writer: str, rows: Iterable[Any]) -> Chain:
        """Raises VerificationFailed at the first entry that is not as it was, or not as it was signed."""
        statement, checkpoint = (self.signed.get((purpose, writer)) for purpose in Purpose)
        places = [*([statement.head] if statement else ()), *self._earlier(writer)]
        head = checkpoint.head if checkpoint else START
        signed_to = max([each.head.position for each in (statement, checkpoint) if each], default=0)
        unsigned_since = None
        check_places(writer, places, head)
        for row in rows:
            head = follow(row, head)
            check_places(writer, places, head)
            if unsigned_since is None and head.position > signed_to:
                unsigned_since = moment_of(row)
        return Chain(writer, head, statement, checkpoint, unsigned_since)

    def check_end(self, chain: Chain) -> None:
        """Raises VerificationFailed where a chain ends before a place that it once had reached."""
        for place in (chain.signed.head if chain.signed else None, *self._earlier(chain.writer)):
            check_not_shorter(chain.writer, chain.head, place)

    def _earlier(self, writer: str) -> list[Head]:
        head = self.earlier.get(writer)
        return [head] if head else []
