"""One SQLite database file: durable transactions, and every failure of it as LedgerUnavailable.

It knows no tables beyond the schema's version. A failure closes the connection, and the next use
opens a new one: what was repaired outside works again without a restart.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, PoolProxiedConnection

from citadel_py.core.errors import LedgerUnavailable
from citadel_py.store.files import PRIVATE_FILE, sync_directory
from citadel_py.store.schema import SCHEMA_VERSION, schema_version, upgrade

IntegrityError = sqlite3.IntegrityError

_WRITE, _READ = "BEGIN IMMEDIATE", "BEGIN"

_RESTORE = "restore it from a backup, and remove -wal and -shm files beside it that are older"

# By primary result code (https://sqlite.org/rescode.html): rule, hint.
_FAILURES = {
    sqlite3.SQLITE_BUSY: ("ledger_locked", "another process holds it: a backup, or a shell with an open transaction"),
    sqlite3.SQLITE_LOCKED: ("ledger_locked", "another connection holds it"),
    sqlite3.SQLITE_FULL: ("ledger_disk_full", "make room on the file system"),
    sqlite3.SQLITE_IOERR: ("ledger_io_error", "see the kernel's log, and the limits on file sizes"),
    sqlite3.SQLITE_READONLY: ("ledger_read_only", "let this user write the file and its directory"),
    sqlite3.SQLITE_CANTOPEN: ("ledger_missing", _RESTORE),
    sqlite3.SQLITE_CORRUPT: ("ledger_corrupt", _RESTORE),
    sqlite3.SQLITE_NOTADB: ("ledger_corrupt", _RESTORE),
}


class Database:
    """A database file with one connection for transactions, which threads take turns on.

    Transactions are on disk when they return (WAL, synchronous=FULL). Where another process writes,
    they wait for up to `busy_timeout`. Make one with `open`.
    """

    def __init__(self, path: Path, *, busy_timeout: timedelta) -> None:
        self.path = path.absolute()
        self._busy_timeout_s = busy_timeout.total_seconds()
        self.engine = create_engine(
            "sqlite+pysqlite://", creator=self._connect, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        self._lock = threading.Lock()
        self._connection: PoolProxiedConnection | None = None
        self._identity: tuple[int, int] | None = None

    @classmethod
    def open(cls, path: Path, *, busy_timeout: timedelta) -> Database:
        """Open the file, made with mode 0600 if absent, and bring its schema up to date. Raises LedgerUnavailable."""
        database = cls(path, busy_timeout=busy_timeout)
        with database._failures():
            database._create_file()
            with database.engine.connect() as connection:
                if schema_version(connection) != SCHEMA_VERSION:
                    connection.exec_driver_sql(_WRITE)
                    if schema_version(connection) != SCHEMA_VERSION:  # another process may have been first
                        upgrade(connection)
                    connection.exec_driver_sql("COMMIT")
        return database

    def close(self) -> None:
        """Let go of the file. It opens again by itself when it is used again."""
        with self._lock:
            self._drop()

    @contextlib.contextmanager
    def writing(self) -> Iterator[DBAPICursor]:
        """A transaction that holds the only write lock from its start; durable once this returns.

        Any exception undoes all of it. Failures of the database are raised as LedgerUnavailable.
        """
        with self._transaction(_WRITE) as cursor:
            yield cursor

    @contextlib.contextmanager
    def reading(self) -> Iterator[DBAPICursor]:
        """A short transaction that only reads. Raises LedgerUnavailable."""
        with self._transaction(_READ) as cursor:
            yield cursor

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection of its own that sees one state of the database, for long reads. Raises LedgerUnavailable."""
        with self._failures(), self.engine.connect() as connection:
            connection.exec_driver_sql(_READ)
            yield connection

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[DBAPICursor]:
        with self._lock, self._failures():
            connection = self._current_connection()
            cursor = connection.cursor()
            try:
                cursor.execute(begin)
                yield cursor
                self._check_in_place()
                connection.commit()
            except (sqlite3.Error, OSError):
                self._undo(connection, cursor)
                self._drop()
                raise
            except BaseException:
                self._undo(connection, cursor)
                raise

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._failure(error) from error
        except DBAPIError as error:
            raise self._failure(error.orig or error) from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise LedgerUnavailable(f"cannot use the ledger {self.path}: {reason}", rule="ledger_io_error") from error

    def _failure(self, error: BaseException) -> LedgerUnavailable:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        rule, hint = _FAILURES.get(primary, (None, ()))
        return LedgerUnavailable(f"cannot use the ledger {self.path}: {error}", rule=rule, hint=hint)

    def _connect(self) -> sqlite3.Connection:
        self._check_writable()
        # mode=rw: a running program never makes a new, empty ledger in place of one that is gone
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw", uri=True, timeout=self._busy_timeout_s, check_same_thread=False
        )
        try:
            connection.isolation_level = None
            for setting in ("journal_mode=WAL", "synchronous=FULL", "fullfsync=ON"):
                connection.execute(f"PRAGMA {setting}").close()
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _check_writable(self) -> None:
        """SQLite would open it to read, and leave files beside it that nobody may write afterwards."""
        if self.path.exists() and not os.access(self.path, os.R_OK | os.W_OK, effective_ids=True):
            rule, hint = _FAILURES[sqlite3.SQLITE_READONLY]
            raise LedgerUnavailable(f"may not read and write the ledger {self.path}", rule=rule, hint=hint)

    def _create_file(self) -> None:
        """Make the file before SQLite does, which would let others read it."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, PRIVATE_FILE))
            sync_directory(self.path.parent)

    def _current_connection(self) -> PoolProxiedConnection:
        """The connection to the file that is at the path now. SQLite itself would go on writing to a removed one."""
        if self._connection is not None and self._identity != self._file_identity():
            self._drop()
        if self._connection is None:
            self._identity = self._file_identity()
            self._connection = self._checked_connection()
        return self._connection

    def _checked_connection(self) -> PoolProxiedConnection:
        with self.engine.connect() as connection:
            version = schema_version(connection)
        if version != SCHEMA_VERSION:
            raise LedgerUnavailable(
                f"the ledger {self.path} was replaced by one with schema {version or 'none'}, not {SCHEMA_VERSION}",
                rule="ledger_schema_unknown",
                hint="restore the ledger, or restart this program if the new file is meant",
            )
        return self.engine.raw_connection()

    def _check_in_place(self) -> None:
        if self._identity != self._file_identity():
            raise LedgerUnavailable(
                f"the ledger {self.path} was removed or replaced while it was written",
                rule="ledger_missing",
                hint=_RESTORE,
            )

    def _file_identity(self) -> tuple[int, int] | None:
        try:
            state = self.path.stat()
        except FileNotFoundError:
            return None
        return state.st_dev, state.st_ino

    def _undo(self, connection: PoolProxiedConnection, cursor: DBAPICursor) -> None:
        """Explicitly: closing a connection whose cursor somebody still holds would leave the file locked."""
        try:
            cursor.close()
            connection.rollback()
        except sqlite3.Error:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()  # closes it
