"""The demo as people run it: with a real CA, real agents and real Envoys; and what it makes of runs that go wrong."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from _environment import ROOT
from demo_parts.children import ChildDied, Children, Failure
from demo_parts.history import History, Outcome
from demo_parts.load import Load
from demo_parts.screen import State, screen
from demo_parts.wire import Leaf, Side

DEMO = ROOT / "scripts" / "demo_run.py"
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


@dataclass
class Demo:
    """A running demo whose temporary directory is below `place`."""

    process: asyncio.subprocess.Process
    place: Path

    async def wait_for(self, text: str) -> None:
        """Until it prints a line with this text."""
        assert self.process.stdout
        async with asyncio.timeout(60):
            while text not in (line := (await self.process.stdout.readline()).decode()):
                assert line, f"it ended without a word of {text!r}: {await self.complaint()}"

    async def end(self, *, within_s: float = 30) -> tuple[int, str]:
        """Its exit code, and what was left to read."""
        assert self.process.stdout
        async with asyncio.timeout(within_s):
            rest = await self.process.stdout.read()
            return await self.process.wait(), rest.decode()

    async def complaint(self) -> str:
        assert self.process.stderr
        return (await self.process.stderr.read()).decode()

    def parts(self) -> dict[int, str]:
        """Processes that work below `place`: pid and command line."""
        return {pid: command for pid, (directory, command) in processes().items() if self.place in directory.parents}

    def pid_of(self, words: str) -> int:
        (pid,) = (pid for pid, command in self.parts().items() if words in command)
        return pid

    def has_left_nothing(self) -> bool:
        return not self.parts() and not list(self.place.iterdir())


@pytest.fixture
async def start_demo(tmp_path: Path, envoy_binary: Path) -> AsyncIterator[Callable[..., asyncio.Task[Demo]]]:
    started: list[Demo] = []

    async def start(*arguments: str, envoy: Path | str = envoy_binary) -> Demo:
        env = {**os.environ, "ENVOY_BIN": str(envoy), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, DEMO, *arguments, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        started.append(Demo(process, tmp_path))
        return started[-1]

    yield lambda *arguments, **options: asyncio.create_task(start(*arguments, **options))
    for demo in started:
        if demo.process.returncode is None:
            demo.process.terminate()
            await demo.process.communicate()


StartDemo = Callable[..., asyncio.Task[Demo]]


async def test_both_proxies_renew_without_a_failed_request_while_the_ca_is_killed_and_comes_back(
    start_demo: StartDemo,
) -> None:
    demo = await start_demo("--seconds", "60", "--restart-ca")
    code, said = await demo.end(within_s=120)
    assert code == 0, said
    assert "the CA is killed" in said
    assert "the CA answers again" in said
    assert "keeps its certificate and tries again" in said
    assert ", 0 failed," in said.rpartition("60 s: ")[2]
    assert said.endswith("passed: no request failed, and both proxies renewed under load\n")
    assert demo.has_left_nothing()


async def test_ctrl_c_ends_a_run_with_its_summary_and_leaves_nothing_behind(start_demo: StartDemo) -> None:
    demo = await start_demo()
    await demo.wait_for("0 failed")
    assert len(demo.parts()) == 5
    demo.process.send_signal(signal.SIGINT)
    code, said = await demo.end()
    assert code == 1
    assert "not shown: no renewal of the client was seen" in said
    assert demo.has_left_nothing()


async def test_a_stop_before_the_load_leaves_nothing_behind(start_demo: StartDemo) -> None:
    demo = await start_demo()
    await demo.wait_for("CA ")
    demo.process.send_signal(signal.SIGTERM)
    code, _ = await demo.end()
    assert code == 130
    assert demo.has_left_nothing()


async def test_a_part_that_dies_ends_the_run_and_is_named(start_demo: StartDemo) -> None:
    demo = await start_demo("--seconds", "60")
    await demo.wait_for("ends after")
    os.kill(demo.pid_of("client-state"), signal.SIGKILL)
    code, _ = await demo.end()
    assert code == 4
    assert "client agent was killed by signal 9" in await demo.complaint()
    assert demo.has_left_nothing()


async def test_a_part_that_does_not_start_is_told_with_the_end_of_its_log(
    start_demo: StartDemo, tmp_path: Path
) -> None:
    broken = tmp_path.with_name(f"{tmp_path.name}-envoy")
    broken.write_text("#!/bin/sh\necho 'no room for an Envoy' >&2\nexit 7\n")
    broken.chmod(0o700)
    demo = await start_demo(envoy=broken)
    code, _ = await demo.end()
    complaint = await demo.complaint()
    assert code == 4
    assert "server Envoy ended with exit code 7" in complaint
    assert "    no room for an Envoy" in complaint
    assert demo.has_left_nothing()


@pytest.mark.parametrize("name", ["", "/nowhere/envoy", "/"])
async def test_without_an_envoy_it_says_what_to_do(start_demo: StartDemo, name: str) -> None:
    demo = await start_demo(envoy=name)
    code, _ = await demo.end()
    assert code == 3
    assert "hint: run scripts/demo" in await demo.complaint()


# ------------------------------------------------------------------------------------------ the verdict


@pytest.fixture
def renewed() -> Outcome:
    """A run in which both sides renewed once."""
    history = History()
    for side in Side:
        for serial in ("0a", "0b"):
            history.saw(side, Leaf(serial, NOON), at_s=1)
    return Outcome(
        seconds=60, requests=100, failures=0, first_failure="", slowest_s=0.01, handshakes=100, history=history
    )


def test_a_run_without_failures_in_which_both_renewed_has_passed(renewed: Outcome) -> None:
    assert not list(renewed.complaints())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"failures": 1, "first_failure": "503 no"}, "1 request failed, the first: 503 no"),
        ({"requests": 0, "handshakes": 0}, "no request was made"),
        ({"handshakes": 99}, "only 99 full handshakes for 100 requests"),
        ({"is_outage_missing": True}, "the run ended before the CA was killed and came back"),
    ],
)
def test_what_has_not_been_shown_is_told(renewed: Outcome, change: dict[str, object], complaint: str) -> None:
    assert list(replace(renewed, **change).complaints()) == [complaint]  # type: ignore[arg-type]  # by the parameters


def test_a_side_that_did_not_renew_is_told(renewed: Outcome) -> None:
    renewed.history.proxies[Side.SERVER].leaves.pop()
    assert list(renewed.complaints()) == ["no renewal of the server was seen"]


def test_a_certificate_that_comes_back_after_its_renewal_is_no_second_renewal() -> None:
    # Requests that are under way during a renewal end in any order.
    history = History()
    for serial in ("0a", "0b", "0a", "0b"):
        history.saw(Side.CLIENT, Leaf(serial, NOON), at_s=1)
    assert history.proxies[Side.CLIENT].renewals == 1


def test_waiting_for_the_ca_is_told_once_per_outage() -> None:
    history = History()
    history.ca_was_killed(at_s=1)
    for tries in (1, 2, 3):
        history.agent_told(Side.CLIENT, renew_at=NOON, tries_in_vain=tries, at_s=2)
    assert sum("cannot renew" in event.text for event in history.events) == 1


# ------------------------------------------------------------------------------------------ the screen


@pytest.fixture
def told() -> History:
    """A client that has renewed, and a server that waits for a CA that is away."""
    history, now = History(), datetime.now(UTC)
    for serial in ("aa11bb22cc", "bb33cc44dd"):
        history.saw(Side.CLIENT, Leaf(serial, now + timedelta(seconds=50.4)), at_s=2)
    history.saw(Side.SERVER, Leaf("ee55ff66aa", now + timedelta(seconds=20.4)), at_s=3)
    history.ca_was_killed(at_s=4)
    for side, tries in ((Side.CLIENT, 0), (Side.SERVER, 1)):
        history.agent_told(side, renew_at=now + timedelta(seconds=30.4), tries_in_vain=tries, at_s=5)
    return history


def test_lines_tell_each_event_once_and_the_state_every_five_seconds(told: History) -> None:
    file = StringIO()
    with screen(Console(file=file)) as show:
        for at_s in (5, 6, 7, 10):
            show(State(at_s, told, Load("http://nowhere", requests=7)))
    assert file.getvalue().splitlines() == [
        "   2 s  * client renewed: aa11bb22 -> bb33cc44",
        "   4 s  * the CA is killed (SIGKILL), shortly before a renewal",
        "   5 s  * server cannot renew while the CA is away: keeps its certificate and tries again",
        "   5 s  7 requests, 0 failed, client bb33cc44 renews in 30 s, server ee55ff66 ends in 20 s, CA AWAY",
        "  10 s  7 requests, 0 failed, client bb33cc44 renews in 30 s, server ee55ff66 ends in 20 s, CA AWAY",
    ]


def test_a_terminal_has_the_last_state_in_view(told: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = StringIO()
    with screen(Console(file=file, force_terminal=True, width=100, color_system=None)) as show:
        show(State(5, told, Load("http://nowhere", requests=7)))
    shown = file.getvalue()
    assert "7 requests, 0 failed" in shown
    assert re.search(r"client +bb33cc44dd +in 50 s +in 30 s +1", shown)
    assert re.search(r"server +ee55ff66aa +in 20 s +in 30 s +0", shown)


# ------------------------------------------------------------------------------------------- processes


async def test_a_child_that_does_not_listen_to_sigterm_is_killed(tmp_path: Path) -> None:
    async with Children(tmp_path, grace_s=0.1) as children:
        child = await children.start("deaf one", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])
        await children.until(lambda: is_written(child.log), "it is deaf", within_s=20)
    assert child.process.returncode == -signal.SIGKILL


async def test_a_child_that_dies_while_another_is_waited_for_is_told(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        await children.start("short one", ["sh", "-c", "echo 'oh no'; exit 3"])
        with pytest.raises(ChildDied, match=r"(?s)short one ended with exit code 3.*oh no"):
            await children.until(never, "something else", within_s=20)


async def test_a_program_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        with pytest.raises(Failure, match="cannot run /nowhere/at-all: No such file"):
            await children.start("nothing", ["/nowhere/at-all"])


async def is_written(log: Path) -> bool:
    return bool(await asyncio.to_thread(log.read_bytes))


async def never() -> bool:
    return False


def processes() -> dict[int, tuple[Path, str]]:
    """What runs now: pid, working directory and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended, or is somebody else's
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(entry.name)] = (entry / "cwd").readlink(), command
    return found
