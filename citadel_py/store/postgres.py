"""The ledger's database on a PostgreSQL server, for several replicas of one service.

The driver (psycopg, the extra `postgres`) is imported only when such a ledger is opened.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import weakref
from datetime import timedelta
from types import ModuleType
from typing import Any, Self

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from citadel_py.core.errors import InvalidConfiguration, LedgerUnavailable
from citadel_py.store.database import Database

SCHEMES = ("postgresql://", "postgres://")

# Where the address does not say otherwise. A commit waits for a connection (seconds); a server that
# vanished without a word is missed after some ten seconds, whether or not something was being sent (milliseconds).
_CONNECTION = {
    "connect_timeout": "2",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "application_name": "citadel-py",
}
_STATEMENT_TIMEOUT = timedelta(seconds=10)
_SCHEMA_LOCK = 0x6369_7461_6465_6C31  # any number that is ours: processes that migrate take turns on it

_UNREACHABLE = ("ledger_unreachable", "see that the server runs, and that its address and access rules are right")
_READ_ONLY = ("ledger_read_only", "a standby, or a role without rights: connect to the primary as the tables' owner")
_LOCKED = ("ledger_locked", "another session holds it: see pg_stat_activity")
_CORRUPT = ("ledger_corrupt", "restore it from a backup")

# By SQLSTATE, or its class of two letters (PostgreSQL, appendix A): rule, hint.
_FAILURES = {
    "08": _UNREACHABLE,
    "57": _UNREACHABLE,  # the server stops, starts, or crashed
    "53": _UNREACHABLE,  # no more connections or memory
    "53100": ("ledger_disk_full", "make room on the server's file system"),
    "57014": _LOCKED,  # statement_timeout
    "55P03": _LOCKED,  # lock_timeout
    "25006": _READ_ONLY,
    "42501": _READ_ONLY,
    "40": ("ledger_conflict", "trying again helps"),
    "58": ("ledger_io_error", "see the server's log"),
    "XX": _CORRUPT,
    "42P01": ("ledger_missing", "restore it from a backup"),
    "3D000": ("ledger_missing", "restore it from a backup"),
}


class PostgresDatabase(Database):
    """A database on a server. Writers of one chain take turns on its row of ledger_writers.

    `busy_timeout` bounds the wait for a lock. Make one with `open`.
    """

    begin_write = "BEGIN ISOLATION LEVEL READ COMMITTED"
    begin_read = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"
    begin_snapshot = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    begin_migration = (begin_write, f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")
    is_local = False

    def __init__(self, url: str, *, busy_timeout: timedelta) -> None:
        self._driver = _driver()
        self.errors = (self._driver.Error,)
        self._parameters = _parameters(self._driver, url)
        self._busy_timeout = busy_timeout
        self._lines: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            paramstyle="format",  # positional, as SQLite's
        )
        super().__init__(url.partition("?")[0], engine)

    @classmethod
    def open(cls, url: str, *, busy_timeout: timedelta) -> Self:
        """Connect and bring the schema up to date.

        Raises LedgerUnavailable; InvalidConfiguration (`ledger_url`, `ledger_password`, `ledger_driver_missing`).
        """
        database = cls(url, busy_timeout=busy_timeout)
        database.migrate()
        return database

    def breaks_constraint(self, error: BaseException, *parts: str) -> bool:
        if not isinstance(error, self._driver.errors.UniqueViolation):
            return False
        return error.diag.constraint_name in parts

    def interrupt(self) -> None:
        """See Database. A server that is frozen keeps its side of a connection open: ours is shut, under its user."""
        for line in list(self._lines.values()):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(line)) as shared:  # it has just ended
                shared.shutdown(socket.SHUT_RDWR)

    def _failure(self, error: BaseException) -> LedgerUnavailable:
        state = getattr(error, "sqlstate", None)
        if state is None:  # the connection was not made, or is gone
            rule, hint = _UNREACHABLE if isinstance(error, self._driver.OperationalError) else (None, ())
        else:
            rule, hint = _FAILURES.get(state) or _FAILURES.get(state[:2]) or (None, ())
        return LedgerUnavailable(
            f"cannot use the ledger {self.name}: {' '.join(str(error).split())}", rule=rule, hint=hint
        )

    def _connect(self) -> Any:  # noqa: ANN401 - a class of a driver that may be absent
        connection = self._driver.connect(autocommit=True, **self._parameters)
        self._remember(connection)
        settings = {
            "lock_timeout": _milliseconds(self._busy_timeout),
            "statement_timeout": _milliseconds(max(_STATEMENT_TIMEOUT, 2 * self._busy_timeout)),
            "idle_in_transaction_session_timeout": "60s",  # a session that hangs lets go of its locks
        }
        try:
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
            # A server may answer before a commit is on disk; for us it never does.
            connection.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
        except self._driver.Error:
            connection.close()
            raise
        return connection

    def _remember(self, connection: Any) -> None:  # noqa: ANN401 - the same
        """For `interrupt`: a descriptor of our own, for the connection's may be closed, and another's, by then."""
        line = os.dup(connection.fileno())
        weakref.finalize(connection, os.close, line)
        self._lines[connection] = line


def _milliseconds(duration: timedelta) -> str:
    return f"{max(1, duration // timedelta(milliseconds=1))}ms"  # 0 would mean: no limit


def _driver() -> ModuleType:
    try:
        return importlib.import_module("psycopg")
    except ImportError as error:
        raise InvalidConfiguration(
            f"a ledger on PostgreSQL needs psycopg: {error}",
            rule="ledger_driver_missing",
            hint="pip install 'citadel-py[postgres]'",
        ) from error


def _parameters(driver: ModuleType, url: str) -> dict[str, Any]:
    """The connection's parameters. The address is read by libpq; its text may hold a secret until here."""
    try:
        parameters: dict[str, Any] = driver.conninfo.conninfo_to_dict(url)
    except driver.ProgrammingError as error:
        raise InvalidConfiguration("the ledger's address cannot be read", rule="ledger_url") from error
    if "password" in parameters:
        raise InvalidConfiguration(
            "a password in the ledger's address can be seen by others",
            rule="ledger_password",
            hint="put it into a file: postgresql://HOST/DATABASE?passfile=FILE, or PGPASSFILE",
        )
    return {**_CONNECTION, **parameters}
