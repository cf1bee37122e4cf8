"""Reading the ledger: entries by what is known of them, in pages, so that the reader may take its time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, select, tuple_

from citadel_py.core.ledger_heads import SignedHead
from citadel_py.core.spiffe import SpiffeID
from citadel_py.store.database import Database
from citadel_py.store.rows import Record, to_record, to_signed
from citadel_py.store.schema import LEDGER, LEDGER_HEADS, to_microseconds

_PAGE = 500
_BY_TIME = (LEDGER.c.time, LEDGER.c.writer, LEDGER.c.position)
_BY_CHAIN = (LEDGER.c.writer, LEDGER.c.position)


@dataclass(frozen=True, slots=True)
class Search:
    """What entries must match; None matches all. Hex may be in capitals.

    `since` is included and `until` is not. `under` is a SPIFFE ID, or a trust domain's: those whose
    path begins with all segments of it, but not it itself.
    """

    since: datetime | None = None
    until: datetime | None = None
    spiffe_id: SpiffeID | None = None
    under: SpiffeID | None = None
    serial: str | None = None
    caller: str | None = None
    kind: str | None = None

    def conditions(self) -> ColumnElement[bool]:
        columns = LEDGER.c
        found: list[ColumnElement[bool]] = []
        if self.since is not None:
            found.append(columns.time >= to_microseconds(self.since))
        if self.until is not None:
            found.append(columns.time < to_microseconds(self.until))
        if self.spiffe_id is not None:
            found.append(columns.spiffe_id == str(self.spiffe_id))
        if self.under is not None:  # '0' follows '/': a range that the index serves
            found += [columns.spiffe_id >= f"{self.under}/", columns.spiffe_id < f"{self.under}0"]
        if self.serial is not None:
            found.append(columns.serial == self.serial.lower())
        if self.caller is not None:
            found.append(columns.caller == self.caller)
        if self.kind is not None:
            found.append(columns.kind == self.kind)
        return and_(True, *found)  # noqa: FBT003 - of SQLAlchemy: a conjunction of nothing


def by_time(database: Database, search: Search) -> Iterator[Record]:
    """Oldest first. Raises LedgerUnavailable."""
    return _paged(database, search, _BY_TIME)


def by_chain(database: Database, search: Search) -> Iterator[Record]:
    """Writer after writer, each by position. Raises LedgerUnavailable."""
    return _paged(database, search, _BY_CHAIN)


def newest(database: Database, search: Search, limit: int) -> list[Record]:
    """The `limit` newest of them, oldest first. Raises LedgerUnavailable."""
    query = select(LEDGER).where(search.conditions()).order_by(*(each.desc() for each in _BY_TIME)).limit(limit)
    return [to_record(row) for row in reversed(_rows(database, query))]


def statements(database: Database) -> list[SignedHead]:
    """What was signed about the chains. Raises LedgerUnavailable, VerificationFailed (`ledger_signature_invalid`)."""
    query = select(LEDGER_HEADS).order_by(LEDGER_HEADS.c.writer, LEDGER_HEADS.c.purpose)
    return [to_signed(row) for row in _rows(database, query)]


def _paged(database: Database, search: Search, order: Sequence[Any]) -> Iterator[Record]:
    query = select(LEDGER).where(search.conditions()).order_by(*order).limit(_PAGE)
    page = _rows(database, query)
    while page:
        yield from map(to_record, page)
        last = tuple(getattr(page[-1], each.name) for each in order)
        page = _rows(database, query.where(tuple_(*order) > last))


def _rows(database: Database, query: Select[Any]) -> Sequence[Row[Any]]:
    with database.snapshot() as connection:
        return connection.execute(query).all()
