"""Several processes on one ledger file, and processes that are killed in the middle of their work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from citadel_py.core.ports import JoinToken
from citadel_py.store.ledger import SQLLedger
from tests.store.things import NOW, WEB, entry

REPOSITORY = Path(__file__).parents[2]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.store.other_process", *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_together(commands: Sequence[Sequence[object]]) -> list[list[int]]:
    """Start them all, let them begin at once, and return the numbers that each printed."""
    with ExitStack() as stack:
        processes = [stack.enter_context(start(*command)) for command in commands]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [[int(line) for line in output.split()] for output in outputs]


def test_processes_that_make_the_ledger_together_add_to_one_whole_chain(tmp_path: Path) -> None:
    """The same writer's name in all of them, as several `citadel-py issue` at once."""
    path = tmp_path / "ledger.db"
    run_together([("append", path, "offline", 1000 * number, 40) for number in range(4)])
    with SQLLedger.open(path, writer="reader") as ledger:
        assert {writer: head.position for writer, head in ledger.verify().items()} == {"offline": 160}
        serials = {each.serial for each in ledger.entries()}
    assert serials == {entry(1000 * process + number).serial for process in range(4) for number in range(40)}


def test_of_several_processes_that_use_a_token_one_succeeds(ledger_path: Path) -> None:
    count = 60
    with SQLLedger.open(ledger_path, writer="one", now=lambda: NOW) as ledger:
        for number in range(count):
            ledger.add(JoinToken(number.to_bytes(32, "big"), WEB, NOW + timedelta(minutes=1)))
    wins = run_together([("redeem", ledger_path, count) for _ in range(4)])
    assert sorted(number for each in wins for number in each) == list(range(count))


def test_what_a_killed_process_had_appended_is_there_and_whole(ledger_path: Path) -> None:
    """Killed three times in the middle of appending: every number it had printed was durable before."""
    printed: list[int] = []
    for attempt in range(3):
        with start("append", ledger_path, "service", 100_000 * attempt, 100_000) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            process.stdin.write("go\n")
            process.stdin.flush()
            printed += [int(process.stdout.readline()) for _ in range(30 + attempt)]
            process.kill()
            printed += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        with SQLLedger.open(ledger_path, writer="reader") as ledger:
            written = {each.serial for each in ledger.entries()}
            assert written >= {entry(number).serial for number in printed}
            assert ledger.verify()["service"].position == len(written)
