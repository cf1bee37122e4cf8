"""The ledger in SQL: every certificate, durable before it leaves, in one hash chain per writer.

It keeps and finds entries; what an entry says and how the chain is computed is core/ledger.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Row, Select, bindparam, insert, select, tuple_, update
from sqlalchemy.engine.interfaces import DBAPICursor

from citadel_py.core.errors import BadInput, CitadelError, InvalidConfiguration, LedgerUnavailable, VerificationFailed
from citadel_py.core.ledger import GENESIS, LedgerEntry, chain_hash
from citadel_py.core.ports import JoinToken, Now
from citadel_py.core.spiffe import SpiffeID
from citadel_py.store.database import Database, IntegrityError
from citadel_py.store.schema import LEDGER, WRITERS, from_microseconds, to_microseconds
from citadel_py.store.tokens import SQLTokens

DEFAULT_BUSY_TIMEOUT = timedelta(seconds=2)
_PAGE = 500
_SQLITE_URL = "sqlite:///"
_HASH = re.compile(r"[0-9a-f]{64}")
_RESTORE = "restore the ledger from a backup"


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a writer's chain. Kept somewhere else, it proves later that nothing before it changed."""

    position: int
    hash: str  # lower-case hex


_START = Head(0, GENESIS.hex())


def _utc_now() -> datetime:
    return datetime.now(UTC)


class SQLLedger:
    """core.ports.Ledger and core.ports.TokenStore on one SQLite file. Threads may share one.

    Several processes may write to the same file at once, also under the same writer's name.
    """

    def __init__(self, database: Database, *, writer: str, now: Now) -> None:
        self._database = database
        self._writer = writer
        self._tokens = SQLTokens(database, now)
        dialect, mine = database.engine.dialect, WRITERS.c.writer == bindparam("w")
        # Compiled once, and run on the driver's own cursor: execution by SQLAlchemy would add two thirds
        # to the cost of a commit of one row. Parameters are positional, in the order of the columns.
        self._select_head = str(select(WRITERS.c.position, WRITERS.c.hash).where(mine).compile(dialect=dialect))
        self._insert_head = str(insert(WRITERS).compile(dialect=dialect))
        advance = update(WRITERS).where(mine).values(position=bindparam("p"), hash=bindparam("h"))
        self._update_head = str(advance.compile(dialect=dialect))
        self._insert = str(insert(LEDGER).compile(dialect=dialect))

    @classmethod
    def open(
        cls, path: Path | str, *, writer: str, now: Now = _utc_now, busy_timeout: timedelta = DEFAULT_BUSY_TIMEOUT
    ) -> Self:
        """Open the ledger in a file (or `sqlite:///PATH`), made with mode 0600 if absent.

        `writer` names the chain that `append` adds to. `now` is read only to forget old join tokens.
        Raises LedgerUnavailable, InvalidConfiguration (`ledger_database`).
        """
        return cls(Database.open(_path(path), busy_timeout=busy_timeout), writer=writer, now=now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def append(self, entries: Sequence[LedgerEntry]) -> None:
        """Record all of them in one durable transaction, or none.

        Raises LedgerUnavailable; CitadelError (`duplicate_serial`) where a serial was issued before:
        trying again would not help; BadInput (`ledger_text`) for text that is no Unicode.
        """
        if not entries:
            return
        with self._database.writing() as cursor:
            cursor.execute(self._select_head, (self._writer,))
            row = cursor.fetchone()
            if row is None:
                cursor.execute(self._insert_head, (self._writer, _START.position, _START.hash))
            rows = self._chained(_to_head(row) if row else _START, entries)
            self._insert_rows(cursor, rows)
            cursor.execute(self._update_head, (rows[-1][1], rows[-1][-1], self._writer))

    def entries(
        self, *, since: datetime | None = None, spiffe_id: SpiffeID | None = None, serial: str | None = None
    ) -> Iterator[LedgerEntry]:
        """Entries by time, oldest first, that are not older than `since` and match what is given.

        They are read in pages: the caller may take its time. Raises LedgerUnavailable.
        """
        query = select(LEDGER)
        if since is not None:
            query = query.where(LEDGER.c.time >= to_microseconds(since))
        if spiffe_id is not None:
            query = query.where(LEDGER.c.spiffe_id == str(spiffe_id))
        if serial is not None:
            query = query.where(LEDGER.c.serial == serial.lower())
        return (self._entry(row) for row in self._paged(query))

    def verify(self) -> Mapping[str, Head]:
        """Walk every writer's chain; where each of them ends.

        Raises VerificationFailed (`ledger_entry_changed`, `ledger_entry_missing`, `ledger_end_missing`),
        LedgerUnavailable.
        """
        with self._database.snapshot() as connection:
            heads = {row.writer: Head(row.position, row.hash) for row in connection.execute(select(WRITERS))}
            found: dict[str, Head] = {}
            query = select(LEDGER).order_by(LEDGER.c.writer, LEDGER.c.position)
            for row in connection.execution_options(yield_per=_PAGE).execute(query):
                found[row.writer] = _checked(row, found.get(row.writer, _START))
        for writer in heads.keys() | found.keys():
            _check_end(writer, heads.get(writer, _START), found.get(writer, _START))
        return heads

    def add(self, token: JoinToken) -> None:
        """As SQLTokens.add."""
        self._tokens.add(token)

    def find(self, digest: bytes, *, now: datetime) -> JoinToken:
        """As SQLTokens.find."""
        return self._tokens.find(digest, now=now)

    def redeem(self, digest: bytes, *, now: datetime) -> None:
        """As SQLTokens.redeem."""
        self._tokens.redeem(digest, now=now)

    def _insert_rows(self, cursor: DBAPICursor, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            cursor.executemany(self._insert, rows)
        except IntegrityError as error:
            if "serial" not in str(error):
                raise  # a failure of the database, none of the caller's
            message = "a serial number was issued before: the source of randomness repeats itself"
            raise CitadelError(message, rule="duplicate_serial") from error
        except UnicodeEncodeError as error:
            raise BadInput(f"text that cannot be recorded: {error}", rule="ledger_text") from error

    def _chained(self, head: Head, entries: Sequence[LedgerEntry]) -> list[tuple[Any, ...]]:
        rows, previous = [], bytes.fromhex(head.hash)
        for position, entry in enumerate(entries, head.position + 1):
            previous = chain_hash(previous, self._writer, position, entry)
            rows.append(_to_row(self._writer, position, entry, previous.hex()))
        return rows

    def _paged(self, query: Select[Any]) -> Iterator[Row[Any]]:
        place = tuple_(LEDGER.c.time, LEDGER.c.writer, LEDGER.c.position)
        query = query.order_by(LEDGER.c.time, LEDGER.c.writer, LEDGER.c.position).limit(_PAGE)
        page = self._rows(query)
        while page:
            yield from page
            last = page[-1]
            page = self._rows(query.where(place > (last.time, last.writer, last.position)))

    def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        with self._database.snapshot() as connection:
            return connection.execute(query).all()

    def _entry(self, row: Row[Any]) -> LedgerEntry:
        try:
            return _to_entry(row)
        except (TypeError, OverflowError) as error:
            raise LedgerUnavailable(
                f"entry {row.position} of {row.writer} cannot be read: {error}", rule="ledger_corrupt", hint=_RESTORE
            ) from error


def _path(path: Path | str) -> Path:
    if isinstance(path, Path) or "://" not in path:
        return Path(path)
    if not path.startswith(_SQLITE_URL):
        scheme = path.partition("://")[0]
        raise InvalidConfiguration(f"no ledger on {scheme!a} databases, only sqlite", rule="ledger_database")
    return Path(path.removeprefix(_SQLITE_URL))


def _to_head(row: Sequence[Any]) -> Head:
    """Raises LedgerUnavailable for what this program never wrote: going on from it would hide that."""
    match row:
        case (int() as position, str() as digest) if _HASH.fullmatch(digest):
            return Head(position, digest)
        case _:
            raise LedgerUnavailable("the end of the ledger's chain is damaged", rule="ledger_corrupt", hint=_RESTORE)


def _to_row(writer: str, position: int, entry: LedgerEntry, digest: str) -> tuple[Any, ...]:
    """In the order of LEDGER's columns."""
    return (
        writer,
        position,
        entry.kind,
        entry.serial,
        entry.spiffe_id,
        entry.caller,
        entry.method,
        entry.public_key_sha256,
        entry.authority_id,
        to_microseconds(entry.not_before),
        to_microseconds(entry.not_after),
        entry.request_id,
        to_microseconds(entry.time),
        digest,
    )


def _to_entry(row: Row[Any]) -> LedgerEntry:
    return LedgerEntry(
        kind=row.kind,
        serial=row.serial,
        spiffe_id=row.spiffe_id,
        caller=row.caller,
        method=row.method,
        public_key_sha256=row.public_key_sha256,
        authority_id=row.authority_id,
        not_before=from_microseconds(row.not_before),
        not_after=from_microseconds(row.not_after),
        request_id=row.request_id,
        time=from_microseconds(row.time),
    )


def _checked(row: Row[Any], previous: Head) -> Head:
    """The head after this row. Raises VerificationFailed unless the row continues the chain."""
    if row.position != previous.position + 1:
        raise VerificationFailed(
            f"entry {previous.position + 1} of writer {row.writer!a} is missing", rule="ledger_entry_missing"
        )
    try:
        digest = chain_hash(bytes.fromhex(previous.hash), row.writer, row.position, _to_entry(row))
    except (TypeError, OverflowError):  # a value that this program never wrote
        digest = b""
    if digest.hex() != row.hash:
        raise VerificationFailed(
            f"entry {row.position} of writer {row.writer!a}, or the one before it, was changed",
            rule="ledger_entry_changed",
        )
    return Head(row.position, row.hash)


def _check_end(writer: str, head: Head, found: Head) -> None:
    if found != head:
        raise VerificationFailed(
            f"the chain of writer {writer!a} ends with entry {found.position}, and {head.position!a} were written",
            rule="ledger_end_missing",
        )
