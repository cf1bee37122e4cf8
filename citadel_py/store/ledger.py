"""The ledger in SQL: every certificate, durable before it leaves, in one hash chain per writer.

The parts are elsewhere: what an entry says and how the chain is computed in core/ledger.py, adding
and signing in chain_writer.py, verifying in chains.py, reading in search.py, pruning in retention.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import select

from citadel_py.core.errors import InvalidConfiguration, VerificationFailed
from citadel_py.core.keys import PublicKey
from citadel_py.core.ledger import Head, LedgerEntry
from citadel_py.core.ledger_heads import Seal, SignedHead
from citadel_py.core.ports import JoinToken, Now
from citadel_py.core.spiffe import SpiffeID
from citadel_py.store import chains, retention, search
from citadel_py.store.chain_writer import ChainWriter
from citadel_py.store.chains import Chain
from citadel_py.store.database import Database
from citadel_py.store.postgres import SCHEMES, PostgresDatabase
from citadel_py.store.rows import Record
from citadel_py.store.schema import WRITERS
from citadel_py.store.search import Search
from citadel_py.store.sqlite import SQLiteDatabase
from citadel_py.store.tokens import SQLTokens

DEFAULT_BUSY_TIMEOUT = timedelta(seconds=2)
_SQLITE_URL = "sqlite:///"  # then a path: four slashes for one from the root


def _utc_now() -> datetime:
    return datetime.now(UTC)


def open_database(path: Path | str, *, busy_timeout: timedelta) -> Database:
    """The database at a path, `sqlite:///PATH` or `postgresql://...`, made ready. Raises as SQLLedger.open."""
    if isinstance(path, str) and path.startswith(SCHEMES):
        return PostgresDatabase.open(path, busy_timeout=busy_timeout)
    return SQLiteDatabase.open(_path(path), busy_timeout=busy_timeout)


class SQLLedger:
    """core.ports.Ledger and core.ports.TokenStore on one database. Threads may share one.

    Several processes may write to the same database at once, also under the same writer's name.
    """

    def __init__(self, database: Database, *, writer: str, now: Now, seal: Callable[[], Seal] | None = None) -> None:
        self._database = database
        self._now = now
        self._chain = ChainWriter(database, writer, now=now, seal=seal)
        self._tokens = SQLTokens(database, now)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        writer: str,
        now: Now = _utc_now,
        busy_timeout: timedelta = DEFAULT_BUSY_TIMEOUT,
        seal: Callable[[], Seal] | None = None,
    ) -> Self:
        """Open the ledger in a file (or `sqlite:///PATH`), made with mode 0600 if absent, or on PostgreSQL.

        `writer` names the chain that `append` adds to; a new one is signed at once with what `seal`
        gives. `now` is read to forget old join tokens, and for the time of signatures. Raises
        LedgerUnavailable, InvalidConfiguration (`ledger_database`, and for PostgreSQL `ledger_url`,
        `ledger_password`, `ledger_driver_missing`).
        """
        return cls(open_database(path, busy_timeout=busy_timeout), writer=writer, now=now, seal=seal)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine. Work on another one is for a thread: it can take seconds."""
        return self._database.is_local

    def interrupt(self) -> None:
        """As Database.interrupt."""
        self._database.interrupt()

    def append(self, entries: Sequence[LedgerEntry]) -> None:
        """Record all of them in one durable transaction, or none.

        Raises LedgerUnavailable; CitadelError (`duplicate_serial`) where a serial was issued before:
        trying again would not help; BadInput (`ledger_text`) for text that cannot be kept.
        """
        self._chain.append(entries)

    def sign(self, seal: Seal) -> SignedHead | None:
        """Sign the end of this writer's chain; None where it has no entries. Raises as ChainWriter.sign."""
        return self._chain.sign(seal)

    def sign_all(self, seal: Seal, *, adopt: bool = False) -> list[SignedHead]:
        """Sign the end of every chain that is not signed to its end by the authority of now.

        Where a chain cannot be signed the others are, and the first error is raised at the end. Raises
        as ChainWriter.sign.
        """
        with self._database.snapshot() as connection:
            writers = [row[0] for row in connection.execute(select(WRITERS.c.writer).order_by(WRITERS.c.writer))]
        signed, refused = [], []
        for writer in writers:
            try:
                signed.append(ChainWriter(self._database, writer, now=self._now).sign(seal, adopt=adopt))
            except VerificationFailed as error:
                refused.append(error)
        if refused:
            raise refused[0]
        return [each for each in signed if each is not None]

    def entries(
        self, *, since: datetime | None = None, spiffe_id: SpiffeID | None = None, serial: str | None = None
    ) -> Iterator[LedgerEntry]:
        """Entries by time, oldest first, that are not older than `since` and match what is given.

        They are read in pages: the caller may take its time. Raises LedgerUnavailable.
        """
        found = search.by_time(self._database, Search(since=since, spiffe_id=spiffe_id, serial=serial))
        return (record.entry for record in found)

    def newest(self, wanted: Search, *, limit: int) -> list[Record]:
        """As search.newest."""
        return search.newest(self._database, wanted, limit)

    def by_chain(self, wanted: Search) -> Iterator[Record]:
        """As search.by_chain."""
        return search.by_chain(self._database, wanted)

    def statements(self) -> list[SignedHead]:
        """As search.statements."""
        return search.statements(self._database)

    def verify(
        self, keys: Mapping[str, PublicKey] | None = None, earlier: Mapping[str, Head] | None = None
    ) -> Mapping[str, Chain]:
        """As chains.verify: where each writer's chain ends. Without `keys` no signature is looked at."""
        return chains.verify(self._database, keys, earlier)

    def prunable(self, before: datetime) -> Mapping[str, int]:
        """As retention.prunable."""
        return retention.prunable(self._database, before, now=self._now())

    def prune(self, before: datetime, seal: Seal) -> Mapping[str, int]:
        """As retention.prune."""
        return retention.prune(self._database, before, seal, now=self._now())

    def add(self, token: JoinToken) -> None:
        """As SQLTokens.add."""
        self._tokens.add(token)

    def find(self, digest: bytes, *, now: datetime) -> JoinToken:
        """As SQLTokens.find."""
        return self._tokens.find(digest, now=now)

    def check_tokens(self) -> None:
        """As SQLTokens.check."""
        self._tokens.check()

    def redeem(self, digest: bytes, *, now: datetime) -> None:
        """As SQLTokens.redeem."""
        self._tokens.redeem(digest, now=now)


def _path(path: Path | str) -> Path:
    if isinstance(path, Path) or "://" not in path:
        return Path(path)
    if not path.startswith(_SQLITE_URL):
        scheme = path.partition("://")[0]
        raise InvalidConfiguration(
            f"no ledger on {scheme!a} databases, only sqlite and postgresql", rule="ledger_database"
        )
    return Path(path.removeprefix(_SQLITE_URL))
