"""A real PostgreSQL server of the tests' own: on a Unix socket in a directory of its own, stopped by its own id."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg

ABSENT = "no PostgreSQL server: install Debian's postgresql, or put initdb and postgres on PATH"
USER = "citadel"


def find_binaries() -> Path | None:
    """The directory with initdb and postgres; the newest where there are several."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: int(each.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    candidates = [*packaged, *([Path(on_path).resolve().parent] if on_path else [])]
    return next((each for each in candidates if (each / "postgres").exists() and (each / "initdb").exists()), None)


class PostgresServer:
    """PostgreSQL refuses to run as root: there it runs as nobody."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._home = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a socket has at most 107 bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._options: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._home, nobody.pw_uid, nobody.pw_gid)
            self._options = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql:///{database}?host={self._home}&user={USER}"

    def start(self) -> None:
        """Start, and wait until it answers; after a kill it recovers first."""
        program, home = str(self._binaries / "postgres"), str(self._home)
        command = [program, "-D", str(self._data), "-k", home, "-c", "listen_addresses="]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._home,
                **self._options,
            )  # fmt: skip
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError((self._home / "log").read_text())

    def kill(self) -> None:
        """kill -9 of the server with all its processes."""
        assert self._process is not None
        main = self._process.pid
        sessions = [int(each) for each in Path(f"/proc/{main}/task/{main}/children").read_text().split()]
        self._end(signal.SIGKILL)
        for each in sessions:
            with contextlib.suppress(ProcessLookupError):  # it noticed by itself
                os.kill(each, signal.SIGKILL)

    def stop(self) -> None:
        """End all sessions, and stop in order."""
        self._end(signal.SIGINT)

    def remove(self) -> None:
        if self._process is not None:
            self.stop()
        shutil.rmtree(self._home)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """What an administrator does; the rows that it gives."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return list(cursor.fetchall()) if cursor.description else []

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait()
        self._process = None

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._binaries / program), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=self._home, timeout=120, **self._options)
