"""Taking old entries out of the ledger, so that what remains still verifies.

Only the oldest entries of a chain go, up to the first whose certificate ended later than asked, and
in their place stands a checkpoint that an authority signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import BindParameter, bindparam, delete, func, insert, select

from citadel_py.core.errors import BadInput
from citadel_py.core.ledger import Head
from citadel_py.core.ledger_heads import Purpose, Seal
from citadel_py.store.chains import Chain, verify
from citadel_py.store.database import Database
from citadel_py.store.rows import to_signed_row, walk
from citadel_py.store.schema import LEDGER, LEDGER_HEADS, WRITERS, to_microseconds

STEP = 1000  # entries that go in one transaction: a service that commits meanwhile waits for milliseconds


def prunable(database: Database, before: datetime, *, now: datetime) -> Mapping[str, int]:
    """Writer -> how many entries of its chain's beginning are of certificates that ended before `before`.

    Raises BadInput (`ledger_prune_future`), LedgerUnavailable.
    """
    _check_past(before, now)
    with database.snapshot() as connection:
        live = LEDGER.c.not_after >= to_microseconds(before)
        first_live = func.min(LEDGER.c.position).filter(live)
        place = func.coalesce(first_live - 1, func.max(LEDGER.c.position)) - func.min(LEDGER.c.position) + 1
        query = select(LEDGER.c.writer, place).group_by(LEDGER.c.writer).order_by(LEDGER.c.writer)
        return {writer: count for writer, count in connection.execute(query) if count > 0}


def prune(database: Database, before: datetime, seal: Seal, *, now: datetime) -> Mapping[str, int]:
    """Verify the ledger, then take out what `prunable` tells; writer -> how many entries went.

    It goes in steps: whatever stops it, what remains verifies, and the next run goes on. Raises
    VerificationFailed where the ledger does not verify (then nothing was taken out),
    LedgerUnavailable, BadInput (`ledger_prune_future`).
    """
    counts = prunable(database, before, now=now)
    chains = verify(database, seal.keys) if counts else {}
    pruner = _Pruner(database, seal, now)
    for writer, count in counts.items():
        pruner.prune(chains[writer], count)
    return counts


class _Pruner:
    def __init__(self, database: Database, seal: Seal, now: datetime) -> None:
        self._database = database
        self._seal = seal
        self._now = now
        dialect = database.engine.dialect
        writer: BindParameter[str] = bindparam("w")
        turn = select(WRITERS.c.position).where(WRITERS.c.writer == writer).with_for_update()
        step = (LEDGER.c.writer == writer) & LEDGER.c.position.between(bindparam("a"), bindparam("b"))
        old = (LEDGER_HEADS.c.purpose == bindparam("p")) & (LEDGER_HEADS.c.writer == writer)
        # Compiled for the driver's own cursor. Parameters are positional.
        self._turn = str(turn.compile(dialect=dialect))
        self._select = str(select(LEDGER).where(step).order_by(LEDGER.c.position).compile(dialect=dialect))
        self._delete = str(delete(LEDGER).where(step).compile(dialect=dialect))
        self._forget = str(delete(LEDGER_HEADS).where(old).compile(dialect=dialect))
        self._insert = str(insert(LEDGER_HEADS).compile(dialect=dialect))

    def prune(self, chain: Chain, count: int) -> None:
        """Take out the oldest `count` entries."""
        head, end = chain.start, chain.start.position + count
        while head.position < end:
            head = self._step(chain.writer, head, min(head.position + STEP, end))

    def _step(self, writer: str, start: Head, end: int) -> Head:
        """Move the checkpoint to `end` and take out what lies before, in one transaction."""
        step = (writer, start.position + 1, end)
        with self._database.writing() as cursor:
            cursor.execute(self._turn, (writer,))
            cursor.execute(self._select, step)
            head = walk(cursor.fetchall(), start)
            signed = self._seal.sign(Purpose.CHECKPOINT, writer, head, now=self._now)
            cursor.execute(self._forget, (str(Purpose.CHECKPOINT), writer))
            cursor.execute(self._insert, to_signed_row(signed))
            cursor.execute(self._delete, step)
        return head


def _check_past(before: datetime, now: datetime) -> None:
    if before > now:
        raise BadInput(
            f"{before:%FT%TZ} lies in the future: only entries of certificates that have ended can go",
            rule="ledger_prune_future",
        )
