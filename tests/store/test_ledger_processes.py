"""Several processes on one ledger, and processes and servers that are killed in the middle of their work."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO

import pytest

from citadel_py.core.ports import JoinToken
from citadel_py.store.ledger import SQLLedger
from tests.store.other_process import shared_seal
from tests.store.postgres_server import ABSENT, PostgresServer, find_binaries
from tests.store.things import NOW, WEB, entry

REPOSITORY = Path(__file__).parents[2]
KILLS = 20
SERVER_KILLS = 5


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


@pytest.fixture(params=["sqlite", "postgres"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """A place for a ledger that does not exist yet."""
    if request.param == "sqlite":
        return tmp_path / "ledger.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    server.execute("DROP DATABASE IF EXISTS fresh")
    server.execute("CREATE DATABASE fresh")
    return server.url("fresh")


def test_processes_that_make_the_ledger_together_add_to_one_whole_chain(nowhere: Path | str) -> None:
    """The same writer's name in all of them, as several `citadel-py issue` at once."""
    run_together([("append", nowhere, "offline", 1000 * number, 40) for number in range(4)])
    with SQLLedger.open(nowhere, writer="reader") as ledger:
        chains = ledger.verify(shared_seal().keys)
        assert {writer: chain.position for writer, chain in chains.items()} == {"offline": 160}
        serials = {each.serial for each in ledger.entries()}
    assert serials == {entry(1000 * process + number).serial for process in range(4) for number in range(40)}


def test_of_several_processes_that_use_a_token_one_succeeds(ledger_url: Path | str) -> None:
    count = 60
    with SQLLedger.open(ledger_url, writer="one", now=lambda: NOW) as ledger:
        for number in range(count):
            ledger.add(JoinToken(number.to_bytes(32, "big"), WEB, NOW + timedelta(minutes=1)))
    wins = run_together([("redeem", ledger_url, count) for _ in range(4)])
    assert sorted(number for each in wins for number in each) == list(range(count))


def test_a_process_that_writes_without_a_pause_leaves_room_for_others(tmp_path: Path) -> None:
    """With the patience that a worker of `serve` has. A commit may take long where the disk is busy, a turn may not."""
    place = tmp_path / "ledger.db"
    with (
        SQLLedger.open(place, writer="patient", busy_timeout=timedelta(milliseconds=250)) as ledger,
        start("append", place, "hasty", 1000, 300) as hasty,
    ):
        assert hasty.stdout is not None
        assert hasty.stdout.readline() == "ready\n"
        assert hasty.stdin is not None
        hasty.stdin.write("go\n")
        hasty.stdin.flush()
        for number in range(100):
            ledger.append([entry(number)])
        hasty.communicate()
        assert hasty.returncode == 0
        assert {writer: chain.position for writer, chain in ledger.verify().items()} == {"patient": 100, "hasty": 300}


class Nursery:
    """Starts processes that append until they are killed; `acknowledged` is what they said is durable."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._begun = 0
        self._child = 0
        self.acknowledged: set[int] = set()

    def begin(self, url: Path | str) -> None:
        self._begun += 1
        self._stdin.write(f"{url} service {self._begun * 1_000_000}\n")
        self._stdin.flush()
        self._child = int(self._stdout.readline())

    def wait_for(self, count: int) -> None:
        """Until so many more entries are acknowledged."""
        self.acknowledged |= {int(self._stdout.readline()) for _ in range(count)}

    def kill(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        while (line := self._stdout.readline()) != "gone\n":
            self.acknowledged.add(int(line))


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    with start("offspring") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Nursery(process.stdin, process.stdout)
        process.stdin.close()


def check_all_there(url: Path | str, acknowledged: set[int]) -> None:
    """Every acknowledged entry is in the ledger, and the ledger verifies: chain and signatures."""
    with SQLLedger.open(url, writer="reader") as ledger:
        written = {each.serial for each in ledger.entries()}
        chain = ledger.verify(shared_seal().keys)["service"]
    assert {entry(number).serial for number in acknowledged} <= written
    assert chain.position == len(written)


def test_what_a_killed_process_had_appended_is_there_and_whole(ledger_url: Path | str, nursery: Nursery) -> None:
    """Killed at random moments; whatever it had acknowledged was durable before."""
    dice = random.Random(5)  # noqa: S311 - a test that can be repeated
    for _ in range(KILLS):
        nursery.begin(ledger_url)
        nursery.wait_for(dice.randrange(60))
        nursery.kill()
        check_all_there(ledger_url, nursery.acknowledged)
    assert len(nursery.acknowledged) > 10 * KILLS


@contextmanager
def own_server() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(ABSENT)
    server = PostgresServer(binaries)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def test_when_the_server_is_killed_the_service_goes_on_by_itself(nursery: Nursery) -> None:
    """The server and all its sessions, at random moments under load, while one process keeps appending."""
    dice = random.Random(7)  # noqa: S311 - a test that can be repeated
    with own_server() as server:
        url = server.url()
        nursery.begin(url)
        for _ in range(SERVER_KILLS):
            nursery.wait_for(20 + dice.randrange(200))
            server.kill()
            server.start()
        nursery.wait_for(50)
        nursery.kill()
        check_all_there(url, nursery.acknowledged)
