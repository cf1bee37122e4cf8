"""Runs of the program in this process, and what its tests share. Fixtures are in conftest.py."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from citadel_py.cli import run
from citadel_py.store.ledger import SQLLedger

NOW = datetime(2026, 3, 4, 5, 6, 7, 890000, tzinfo=UTC)


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def rule(self) -> str | None:
        """The rule in the error message."""
        found = re.search(r"^citadel-py: error: .*\[rule (\w+)\]$", self.err, re.MULTILINE)
        return found and found[1]


Golden = Callable[[str, Outcome], None]


@contextlib.contextmanager
def stdin_of(data: bytes) -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(data))
    try:
        yield
    finally:
        sys.stdin = before


def cli(*arguments: object, stdin: bytes = b"", now: datetime = NOW) -> Outcome:
    """Run a command: `cli("issue", ID, "--dir", directory)`."""
    out, err = io.BytesIO(), io.BytesIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stdin_of(stdin))
        stack.enter_context(contextlib.redirect_stdout(io.TextIOWrapper(out, write_through=True)))
        stack.enter_context(contextlib.redirect_stderr(io.TextIOWrapper(err, write_through=True)))
        code = run([str(argument) for argument in arguments], clock=lambda: now)
        return Outcome(code, out.getvalue(), err.getvalue().decode())


def cli_in_a_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The same in a process of its own; `options` are those of subprocess.run."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "citadel_py", *map(str, arguments)]
    return subprocess.run(command, check=False, timeout=60, **{**streams, **options})


def openssl(*arguments: object, stdin: bytes = b"", of: str = "stdout") -> str:
    """Output of an openssl command that succeeds."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    done = subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return str(getattr(done, of).decode())


def serials_in_ledger(directory: Path) -> list[str]:
    """The serials in the ledger of an authority's directory."""
    with SQLLedger.open(directory / "ledger.db", writer="test") as ledger:
        return [entry.serial for entry in ledger.entries()]


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777
