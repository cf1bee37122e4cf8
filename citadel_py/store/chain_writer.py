"""One writer's chain in the ledger: adding entries to its end, and signing that end.

What was signed is only ever continued: a head is signed where its entries lead from a statement that
an authority of ours signed before, so that nobody gets a rewritten chain signed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine.interfaces import DBAPICursor

from citadel_py.core.errors import BadInput, CitadelError
from citadel_py.core.ledger import START, Head, LedgerEntry, chain_hash
from citadel_py.core.ledger_heads import Purpose, Seal, SignedHead
from citadel_py.core.ports import Now
from citadel_py.store.database import Database
from citadel_py.store.rows import (
    check_end,
    check_not_shorter,
    check_text,
    never_signed,
    to_head,
    to_row,
    to_signed,
    to_signed_row,
    walk,
)
from citadel_py.store.schema import LEDGER, LEDGER_HEADS, WRITERS

_PAGE = 500


class _Statements:
    """SQL that is compiled once, and run on the driver's own cursor.

    Execution by SQLAlchemy would add two thirds to the cost of a commit of one row. Text and
    placeholders follow the dialect. Parameters are positional, in the order of the columns.
    """

    def __init__(self, database: Database) -> None:
        dialect = database.engine.dialect
        mine = WRITERS.c.writer == bindparam("w")
        signed = (LEDGER_HEADS.c.purpose == bindparam("p")) & (LEDGER_HEADS.c.writer == bindparam("w"))
        after = (LEDGER.c.writer == bindparam("w")) & (LEDGER.c.position > bindparam("n"))
        head = select(WRITERS.c.position, WRITERS.c.hash).where(mine).with_for_update()
        advance = update(WRITERS).where(mine).values(position=bindparam("p"), hash=bindparam("h"))
        self.select_head = str(head.compile(dialect=dialect))
        self.insert_head = f"{insert(WRITERS).compile(dialect=dialect)} ON CONFLICT DO NOTHING"
        self.update_head = str(advance.compile(dialect=dialect))
        self.insert = str(insert(LEDGER).compile(dialect=dialect))
        self.select_after = str(select(LEDGER).where(after).order_by(LEDGER.c.position).compile(dialect=dialect))
        self.select_signed = str(select(LEDGER_HEADS).where(signed).compile(dialect=dialect))
        self.delete_signed = str(delete(LEDGER_HEADS).where(signed).compile(dialect=dialect))
        self.insert_signed = str(insert(LEDGER_HEADS).compile(dialect=dialect))


class ChainWriter:
    """Adds to the chain of `writer`; several processes may, also under one name.

    `seal` gives what signs now: a chain is signed from its first commit on.
    """

    def __init__(self, database: Database, writer: str, *, now: Now, seal: Callable[[], Seal] | None = None) -> None:
        self._database = database
        self._writer = writer
        self._now = now
        self._seal = seal
        self._sql = _Statements(database)
        # The last place of the chain that this process wrote or walked to, from what is signed. Where the chain
        # ends there, nobody else has been at it.
        self._known: Head | None = None

    def append(self, entries: Sequence[LedgerEntry]) -> None:
        """As core.ports.Ledger.append; BadInput (`ledger_text`) for text that cannot be kept."""
        if not entries:
            return
        before = self._known
        try:
            self._known = self._commit(entries)
        except BaseException:
            self._known = before  # whether or not the commit was made: the chain leads through it
            raise

    def sign(self, seal: Seal, *, adopt: bool = False) -> SignedHead | None:
        """Sign the end of the chain as it is now, durably; None where it has no entries.

        Entries that came from elsewhere since the last statement are walked first. `adopt` takes what
        is there on trust, from the chain's beginning. Raises LedgerUnavailable; VerificationFailed
        where the chain does not continue what an authority of ours signed (`ledger_unsigned`,
        `ledger_authority_unknown`, `ledger_signature_invalid` and the rules of rows.walk).
        """
        known = None if adopt else self._known
        reached = self._walked(seal, known, adopt=adopt)
        with self._database.writing() as cursor:
            head = self._locked_head(cursor)
            if head is None:
                return None
            if head != known:
                cursor.execute(self._sql.select_after, (self._writer, reached.position))
                check_end(self._writer, head, walk(cursor.fetchall(), reached, known))
                check_not_shorter(self._writer, head, known)
            signed = self._signed(cursor, Purpose.HEAD)
            if signed is None or (signed.head, signed.authority_id) != (head, seal.authority.id) or adopt:
                signed = seal.sign(Purpose.HEAD, self._writer, head, now=self._now())
                self._store(cursor, signed)
            self._renew_checkpoint(cursor, seal, adopt=adopt)
            self._known = head
        return signed

    def _commit(self, entries: Sequence[LedgerEntry]) -> Head | None:
        """Append; the last place of the chain that is known afterwards."""
        with self._database.writing() as cursor:
            head = self._locked_head(cursor) or self._begin(cursor)
            rows = self._chained(head, entries)
            self._insert_rows(cursor, rows)
            end = Head(rows[-1][1], rows[-1][-1])
            cursor.execute(self._sql.update_head, (end.position, end.hash, self._writer))
            if head == START and self._seal is not None:
                self._store(cursor, self._seal().sign(Purpose.HEAD, self._writer, end, now=self._now()))
        return end if head in (START, self._known) else self._known

    def _walked(self, seal: Seal, known: Head | None, *, adopt: bool) -> Head:
        """From what is signed to the end, while others may write: the long part of signing."""
        with self._database.snapshot() as connection:
            statements = [to_signed(row) for row in connection.execute(_statements_of(self._writer))]
            start = _trusted(statements, seal, adopt=adopt)
            if start is None:
                if connection.execute(select(WRITERS).where(WRITERS.c.writer == self._writer)).first() is None:
                    return START
                raise never_signed(self._writer)
            if known is not None:  # most likely it still is the end
                return start
            with connection.execution_options(yield_per=_PAGE).execute(_rows_after(self._writer, start)) as rows:
                return walk(rows, start)

    def _locked_head(self, cursor: DBAPICursor) -> Head | None:
        cursor.execute(self._sql.select_head, (self._writer,))
        row = cursor.fetchone()
        return to_head(row) if row else None

    def _begin(self, cursor: DBAPICursor) -> Head:
        """The start of a chain, unless another process began it a moment ago: then where it stands now."""
        cursor.execute(self._sql.insert_head, (self._writer, START.position, START.hash))
        return self._locked_head(cursor) or START

    def _chained(self, head: Head, entries: Sequence[LedgerEntry]) -> list[tuple[Any, ...]]:
        rows, previous = [], bytes.fromhex(head.hash)
        for position, entry in enumerate(entries, head.position + 1):
            check_text(entry.spiffe_id, entry.caller, entry.method, entry.request_id)
            previous = chain_hash(previous, self._writer, position, entry)
            rows.append(to_row(self._writer, position, entry, previous.hex()))
        return rows

    def _insert_rows(self, cursor: DBAPICursor, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            cursor.executemany(self._sql.insert, rows)
        except self._database.errors as error:
            if not self._database.breaks_constraint(error, "ledger_serial", "ledger.serial"):
                raise  # a failure of the database, none of the caller's
            message = "a serial number was issued before: the source of randomness repeats itself"
            raise CitadelError(message, rule="duplicate_serial") from error
        except UnicodeEncodeError as error:
            raise BadInput(f"text that cannot be recorded: {error}", rule="ledger_text") from error

    def _signed(self, cursor: DBAPICursor, purpose: Purpose) -> SignedHead | None:
        cursor.execute(self._sql.select_signed, (str(purpose), self._writer))
        row = cursor.fetchone()
        return to_signed(row) if row else None

    def _store(self, cursor: DBAPICursor, signed: SignedHead) -> None:
        """In place of the statement of this kind that was there."""
        cursor.execute(self._sql.delete_signed, (str(signed.purpose), signed.writer))
        cursor.execute(self._sql.insert_signed, to_signed_row(signed))

    def _renew_checkpoint(self, cursor: DBAPICursor, seal: Seal, *, adopt: bool) -> None:
        """Have the checkpoint signed by the authority of now, before the one that signed it is forgotten."""
        checkpoint = self._signed(cursor, Purpose.CHECKPOINT)
        if checkpoint is None or checkpoint.authority_id == seal.authority.id:
            return
        if not adopt:
            checkpoint.check(seal.keys)
        self._store(cursor, seal.sign(Purpose.CHECKPOINT, self._writer, checkpoint.head, now=self._now()))


def _statements_of(writer: str) -> Any:  # noqa: ANN401 - a Select of SQLAlchemy
    return select(LEDGER_HEADS).where(LEDGER_HEADS.c.writer == writer)


def _rows_after(writer: str, head: Head) -> Any:  # noqa: ANN401 - the same
    mine = (LEDGER.c.writer == writer) & (LEDGER.c.position > head.position)
    return select(LEDGER).where(mine).order_by(LEDGER.c.position)


def _trusted(statements: Sequence[SignedHead], seal: Seal, *, adopt: bool) -> Head | None:
    """The furthest place in the chain that an authority of ours has signed. Raises VerificationFailed."""
    if adopt:
        statements = [each for each in statements if each.purpose is Purpose.CHECKPOINT]
    else:
        for each in statements:
            each.check(seal.keys)
    return max((each.head for each in statements), key=lambda head: head.position, default=START if adopt else None)
