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
    """PostgreSQL refuses to run as root: there it runs as nobody.

    Another program becomes nobody: were Python to, it would fork rather than vfork, and the child of
    a process with gRPC in it may crash in gRPC's handlers of a fork.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._home = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a socket has at most 107 bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._as_whom: tuple[str, ...] = ()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._home, nobody.pw_uid, nobody.pw_gid)
            whom = (f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
            self._as_whom = ("setpriv", *whom, "--")
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql:///{database}?host={self._home}&user={USER}"

    def start(self) -> None:
        """Start, and wait until it answers; after a kill it recovers first."""
        program, home = str(self._binaries / "postgres"), str(self._home)
        command = [*self._as_whom, program, "-D", str(self._data), "-k", home, "-c", "listen_addresses="]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._home
            )  # fmt: skip
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError((self._home / "log").read_text())

    def kill(self) -> None:
        """kill -9 of the server with all its processes; returns when they are gone, for they hold its memory."""
        self.freeze()  # so that it makes no further ones meanwhile
        sessions = self._sessions()
        self._end(signal.SIGKILL)
        for each in sessions:
            with contextlib.suppress(ProcessLookupError):  # it noticed by itself
                os.kill(each, signal.SIGKILL)
        while any(map(_is_alive, sessions)):
            pass

    def freeze(self) -> None:
        """Let it hang, with all its processes: connections stay, and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on where it was."""
        self._signal_all(signal.SIGCONT)

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

    def _sessions(self) -> list[int]:
        """Its processes but for the main one."""
        assert self._process is not None
        main = self._process.pid
        return [int(each) for each in Path(f"/proc/{main}/task/{main}/children").read_text().split()]

    def _signal_all(self, which: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(which)  # first: it makes no further ones meanwhile
        for each in self._sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, which)

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait()
        self._process = None

    def _run(self, program: str, *arguments: object) -> None:
        command = [*self._as_whom, str(self._binaries / program), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=self._home, timeout=120)


def _is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked about does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
