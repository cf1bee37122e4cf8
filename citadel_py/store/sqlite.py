"""The ledger's database as one SQLite file, in WAL mode."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from datetime import timedelta
from pathlib import Path
from typing import Self

from sqlalchemy import create_engine
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.pool import NullPool, PoolProxiedConnection

from citadel_py.core.errors import LedgerUnavailable
from citadel_py.store.database import Database
from citadel_py.store.files import PRIVATE_FILE, sync_directory

_LOOK_AGAIN_S = 0.0005  # while another process has the write lock: about a tenth of a commit
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


class SQLiteDatabase(Database):
    """A database file. Transactions are on disk when they return (WAL, synchronous=FULL).

    One that writes holds the only write lock from its start; where another process has it, it waits
    for up to `busy_timeout`. Make one with `open`.
    """

    begin_write, begin_read, begin_snapshot = "BEGIN IMMEDIATE", "BEGIN", "BEGIN"
    begin_migration = (begin_write,)
    errors = (sqlite3.Error,)

    def __init__(self, path: Path, *, busy_timeout: timedelta) -> None:
        self.path = path.absolute()
        self._busy_timeout_s = busy_timeout.total_seconds()
        self._identity: tuple[int, int] | None = None
        engine = create_engine(
            "sqlite+pysqlite://", creator=self._connect, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        super().__init__(str(self.path), engine)

    @classmethod
    def open(cls, path: Path, *, busy_timeout: timedelta) -> Self:
        """Open the file, made with mode 0600 if absent, and bring its schema up to date. Raises LedgerUnavailable."""
        database = cls(path, busy_timeout=busy_timeout)
        with database._failures():
            database._create_file()
        database.migrate()
        return database

    def interrupt(self) -> None:
        """See Database. There is no server here."""

    def breaks_constraint(self, error: BaseException, *parts: str) -> bool:
        return isinstance(error, sqlite3.IntegrityError) and any(part in str(error) for part in parts)

    def _failure(self, error: BaseException) -> LedgerUnavailable:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        rule, hint = _FAILURES.get(primary, (None, ()))
        return LedgerUnavailable(f"cannot use the ledger {self.name}: {error}", rule=rule, hint=hint)

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

    def _begin(self, cursor: DBAPICursor, begin: str) -> None:
        """Take the write lock within the timeout.

        SQLite by itself looks again after ever longer pauses, of up to 100 ms. A process that commits
        one group after the other has let go of it and taken it again many times by then.
        """
        if begin != self.begin_write:
            return super()._begin(cursor, begin)
        deadline = time.monotonic() + self._busy_timeout_s
        cursor.execute("PRAGMA busy_timeout=0")
        try:
            while not self._has_begun(cursor, is_last_try=time.monotonic() >= deadline):
                time.sleep(_LOOK_AGAIN_S * random.uniform(0.5, 1.5))  # noqa: S311 - so that two do not keep in step
        finally:
            cursor.execute(f"PRAGMA busy_timeout={int(self._busy_timeout_s * 1000)}")
        return None

    def _has_begun(self, cursor: DBAPICursor, *, is_last_try: bool) -> bool:
        try:
            cursor.execute(self.begin_write)
        except sqlite3.OperationalError as error:
            if is_last_try or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False
        return True

    def _checked_connection(self) -> PoolProxiedConnection:
        self._identity = self._file_identity()
        return super()._checked_connection()

    def _is_connected_to_the_right_one(self) -> bool:
        """SQLite itself would go on writing to a file that was removed."""
        return self._identity == self._file_identity()

    def _file_identity(self) -> tuple[int, int] | None:
        try:
            state = self.path.stat()
        except FileNotFoundError:
            return None
        return state.st_dev, state.st_ino
