"""Verifying the whole ledger: every chain from its beginning, or from its checkpoint, to its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, select

from citadel_py.core.errors import VerificationFailed
from citadel_py.core.keys import PublicKey
from citadel_py.core.ledger import START, Head
from citadel_py.core.ledger_heads import Purpose, SignedHead
from citadel_py.store.database import Database
from citadel_py.store.rows import check_end, follow, moment_of, to_signed
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


def verify(database: Database, keys: Mapping[str, PublicKey] | None) -> Mapping[str, Chain]:
    """Walk every chain. With `keys` each must also be signed by one of these authorities.

    Raises VerificationFailed with the rule, writer and position; LedgerUnavailable.
    """
    with database.snapshot() as connection:
        ends = {row[0]: Head(row[1], row[2]) for row in connection.execute(select(WRITERS))}
        signed = _statements(connection, keys)
        found: dict[str, Chain] = {}
        query = select(LEDGER).order_by(LEDGER.c.writer, LEDGER.c.position)
        with connection.execution_options(yield_per=_PAGE).execute(query) as rows:
            for writer, entries in groupby(rows, key=lambda row: row[0]):
                found[writer] = _walked(writer, entries, signed)
    for writer in sorted(ends.keys() | found.keys() | {writer for _, writer in signed}, key=str):
        chain = found[writer] = found.get(writer) or _walked(writer, (), signed)
        check_end(writer, ends.get(writer, START), chain.head)
        _check_signed(chain, is_needed=keys is not None)
    return found


def _statements(
    connection: Connection, keys: Mapping[str, PublicKey] | None
) -> Mapping[tuple[Purpose, str], SignedHead]:
    statements = [to_signed(row) for row in connection.execute(select(LEDGER_HEADS))]
    for each in statements:
        if keys is not None:
            each.check(keys)
    return {(each.purpose, each.writer): each for each in statements}


def _walked(writer: str, rows: Iterable[Any], signed: Mapping[tuple[Purpose, str], SignedHead]) -> Chain:
    """Raises VerificationFailed at the first entry that is not as it was, or not as it was signed."""
    statement, checkpoint = signed.get((Purpose.HEAD, writer)), signed.get((Purpose.CHECKPOINT, writer))
    head = checkpoint.head if checkpoint else START
    signed_to = max(each.head.position for each in (statement, checkpoint) if each) if statement or checkpoint else 0
    unsigned_since = None
    _check_place(statement, head)
    for row in rows:
        head = follow(row, head)
        _check_place(statement, head)
        if unsigned_since is None and head.position > signed_to:
            unsigned_since = moment_of(row)
    return Chain(writer, head, statement, checkpoint, unsigned_since)


def _check_place(signed: SignedHead | None, head: Head) -> None:
    if signed is not None and signed.head.position == head.position and signed.head.hash != head.hash:
        raise VerificationFailed(
            f"entry {head.position} of writer {signed.writer!a} is not the one that was signed",
            rule="ledger_head_differs",
        )


def _check_signed(chain: Chain, *, is_needed: bool) -> None:
    if chain.signed_to > chain.head.position:
        raise VerificationFailed(
            f"the chain of writer {chain.writer!a} ends with entry {chain.position}, and entry {chain.signed_to} "
            "was signed",
            rule="ledger_end_missing",
        )
    if is_needed and chain.signed_to == 0:
        raise VerificationFailed(
            f"the chain of writer {chain.writer!a} was never signed, or its signed head was taken away",
            rule="ledger_unsigned",
            hint="if it was never signed: citadel-py ledger sign --adopt",
        )
