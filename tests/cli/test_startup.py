"""What a command pulls in before it does anything, and how long that takes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from citadel_py.cli import COMMANDS
from tests.cli.support import cli_in_a_process

HEAVY = {
    "aiohttp",
    "alembic",
    "grpc",
    "jwt",
    "kubernetes",
    "pydantic",
    "pydantic_settings",
    "rich",
    "sqlalchemy",
    "structlog",
}
MAX_CPU_S = 0.3  # a person does not notice it


def imported_by(statements: str) -> set[str]:
    script = f"{statements}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_command_line_pulls_in_click_and_nothing_heavy() -> None:
    names = imported_by("import citadel_py.cli")
    assert "click" in names
    assert not names & (HEAVY | {"cryptography", "asyncio"})


def test_no_command_pulls_in_what_it_runs_before_it_runs() -> None:
    modules = (f"citadel_py.cli.commands.{name.replace('-', '_')}" for name in COMMANDS)
    assert not imported_by("\n".join(f"import {name}" for name in modules)) & HEAVY


def test_inspect_runs_without_anything_heavy(web: Path) -> None:
    quietly = "import contextlib, io, citadel_py.cli as cli\nwith contextlib.redirect_stdout(io.StringIO()):"
    names = imported_by(f"{quietly} assert cli.run(['inspect', {str(web)!r}]) == 0")
    assert "cryptography" in names
    assert not names & HEAVY


@pytest.mark.parametrize("arguments", ["--version", "issue --help", "inspect", "verify"])
def test_it_starts_within_the_blink_of_an_eye(web: Path, arguments: str) -> None:
    files: dict[str, list[object]] = {
        "inspect": [web],
        "verify": [web / "tls.crt", "--bundle", web / "ca.crt", "--at", "2026-03-04T06:00:00Z"],
    }
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert cli_in_a_process(*arguments.split(), *files.get(arguments, [])).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < MAX_CPU_S
