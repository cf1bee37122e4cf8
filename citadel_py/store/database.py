"""A database of the ledger: durable transactions, and every failure of it as LedgerUnavailable.

What SQLite and PostgreSQL have in common; where they differ, sqlite.py and postgres.py say how. It
knows no tables beyond the schema's version. A failure closes the connection, and the next use opens
a new one: what was repaired outside works again without a restart.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import PoolProxiedConnection

from citadel_py.core.errors import LedgerUnavailable
from citadel_py.store.schema import SCHEMA_VERSION, schema_version, upgrade


class Database(ABC):
    """A database with one connection for transactions, which threads take turns on.

    Transactions are durable when they return. `name` stands for the database in errors. The
    engine's connections are in the driver's autocommit mode: transactions begin and end here.
    """

    begin_write: str
    begin_read: str
    begin_snapshot: str  # a transaction that sees one state of the database
    begin_migration: Sequence[str]  # a transaction that no other process changes the schema in
    errors: tuple[type[Exception], ...]  # what the driver raises
    is_local = True  # a transaction takes as long as the disk does, and there is no other machine to wait for

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine
        self._breaking: tuple[type[Exception], ...] = (*self.errors, OSError)  # after these a connection is of no use
        self._lock = threading.Lock()
        self._connection: PoolProxiedConnection | None = None

    def migrate(self) -> None:
        """Bring the schema up to date. Raises LedgerUnavailable."""
        with self._failures(), self.engine.connect() as connection:
            if schema_version(connection) == SCHEMA_VERSION:
                return
            for statement in self.begin_migration:
                connection.exec_driver_sql(statement)
            if schema_version(connection) != SCHEMA_VERSION:  # another process may have been first
                upgrade(connection)
            connection.exec_driver_sql("COMMIT")

    def close(self) -> None:
        """Let go of the database. It is connected to again when it is used again."""
        with self._lock:
            self._drop()

    @abstractmethod
    def interrupt(self) -> None:
        """Break off whatever waits for an answer of a server, in any thread: it raises LedgerUnavailable soon."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[DBAPICursor]:
        """A transaction to write in; durable once this returns.

        Any exception undoes all of it. Failures of the database are raised as LedgerUnavailable.
        """
        with self._transaction(self.begin_write) as cursor:
            yield cursor

    @contextlib.contextmanager
    def reading(self) -> Iterator[DBAPICursor]:
        """A short transaction that only reads. Raises LedgerUnavailable."""
        with self._transaction(self.begin_read) as cursor:
            yield cursor

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection of its own that sees one state of the database, for long reads. Raises LedgerUnavailable."""
        with self._failures(), self.engine.connect() as connection:
            connection.exec_driver_sql(self.begin_snapshot)
            yield connection

    @abstractmethod
    def breaks_constraint(self, error: BaseException, *parts: str) -> bool:
        """Whether the driver's error is about the unique constraint with one of these names.

        SQLite tells the columns of a constraint and PostgreSQL its name: `parts` are both.
        """

    @abstractmethod
    def _failure(self, error: BaseException) -> LedgerUnavailable:
        """What the driver raised, with rule and hint."""

    def _is_connected_to_the_right_one(self) -> bool:
        """Whether the open connection leads to the database that the name stands for now."""
        return True

    def _check_in_place(self) -> None:
        """Raise LedgerUnavailable where a commit would go to something that is no longer the ledger."""
        if not self._is_connected_to_the_right_one():
            raise LedgerUnavailable(
                f"the ledger {self.name} was removed or replaced while it was written",
                rule="ledger_missing",
                hint="restore it from a backup",
            )

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[DBAPICursor]:
        with self._lock, self._failures():
            connection = self._current_connection()
            cursor = connection.cursor()
            try:
                self._begin(cursor, begin)
                yield cursor
                self._check_in_place()
                connection.commit()
            except self._breaking:
                self._undo(connection, cursor)
                self._drop()
                raise
            except BaseException:
                self._undo(connection, cursor)
                raise

    def _begin(self, cursor: DBAPICursor, begin: str) -> None:
        cursor.execute(begin)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except self.errors as error:
            raise self._failure(error) from error
        except DBAPIError as error:
            raise self._failure(error.orig or error) from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise LedgerUnavailable(f"cannot use the ledger {self.name}: {reason}", rule="ledger_io_error") from error

    def _current_connection(self) -> PoolProxiedConnection:
        if self._connection is not None and not self._is_connected_to_the_right_one():
            self._drop()
        if self._connection is None:
            self._connection = self._checked_connection()
        return self._connection

    def _checked_connection(self) -> PoolProxiedConnection:
        with self.engine.connect() as connection:
            version = schema_version(connection)
        if version != SCHEMA_VERSION:
            raise LedgerUnavailable(
                f"the ledger {self.name} was replaced by one with schema {version or 'none'}, not {SCHEMA_VERSION}",
                rule="ledger_schema_unknown",
                hint="restore the ledger, or restart this program if the new one is meant",
            )
        return self.engine.raw_connection()

    def _undo(self, connection: PoolProxiedConnection, cursor: DBAPICursor) -> None:
        """Explicitly: closing a connection whose cursor somebody still holds would leave it locked."""
        try:
            cursor.close()
            connection.rollback()
        except self.errors:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()  # closes it
