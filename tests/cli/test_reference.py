"""docs/reference/cli.md: its blocks are what the program says, and its table the exit codes that there are."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from citadel_py.cli import COMMANDS
from citadel_py.cli.exits import MEANINGS
from tests.cli.conftest import UPDATE_GOLDEN, without_random_numbers
from tests.cli.support import cli
from tests.cli.test_frame import EVERY_COMMAND

PAGE = Path(__file__).parents[2] / "docs/reference/cli.md"
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)


def shown_by(line: str) -> str:
    """What a command of the page prints, stderr after stdout; `> FILE` is understood."""
    program, *arguments = shlex.split(line.removeprefix("$ "))
    assert program == "citadel-py"
    target = arguments.pop() if ">" in arguments else None
    outcome = cli(*(each for each in arguments if each != ">"))
    if target:
        Path(target).write_bytes(outcome.raw)
        return outcome.err
    return outcome.out + outcome.err


def run_block(block: str) -> str:
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{command}\n{shown_by(command)}" for command in commands)


def test_every_block_is_what_the_program_shows(tmp_path: Path, csr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert csr.parent == tmp_path  # web.csr is there
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text()
    real = BLOCK.sub(lambda block: run_block(block[0]), page)
    if os.environ.get(UPDATE_GOLDEN) == "1":
        PAGE.write_text(real)
        page = real
    assert without_random_numbers(page) == without_random_numbers(real)


def test_every_command_has_its_help_on_the_page() -> None:
    page = PAGE.read_text()
    names = [*(name for name, _ in EVERY_COMMAND), *COMMANDS]
    assert [name for name in names if f"$ citadel-py {name} --help\n" not in page] == []


def test_the_table_of_exit_codes_is_complete() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(str(int(code)), meaning) for code, meaning in MEANINGS.items()]
