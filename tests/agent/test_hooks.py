"""Commands and signals that tell a program of new files: real processes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from citadel_py.agent.hooks import MAX_OUTPUT, Command, Outcome, Signal
from citadel_py.core.errors import Unavailable
from citadel_py.core.keys import KeyType, generate_key, private_key_pem


def python(script: str, *arguments: str, limit: timedelta = timedelta(seconds=20)) -> Command:
    return Command((sys.executable, "-c", script, *arguments), limit)


async def gone(pid: int) -> None:
    """Until there is no such process, or only what its parent has not looked at."""
    async with asyncio.timeout(10):
        while is_there(pid):
            await asyncio.sleep(0.005)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_command_that_ends_well_tells_what_it_said_on_both_streams() -> None:
    assert await python("import sys; print('one', flush=True); print('two', file=sys.stderr)").run() == Outcome(
        None, "one\ntwo"
    )


async def test_a_command_gets_its_arguments_as_they_are_and_no_shell_sees_them() -> None:
    outcome = await python("import sys; print(sys.argv[1:])", "$HOME; ls *").run()
    assert outcome.output == "['$HOME; ls *']"


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (python("raise SystemExit(3)"), "exit code 3"),
        (python("import os; os.kill(os.getpid(), 9)"), "killed by signal 9"),
        (Command(("/nonexistent/program",)), "No such file"),
        (Command(("program\0",)), "null"),
    ],
)
async def test_a_command_that_fails_says_how(command: Command, error: str) -> None:
    assert error in ((await command.run()).error or "")


async def test_keys_in_the_output_are_removed() -> None:
    key = private_key_pem(generate_key(KeyType.P256)).decode()
    outcome = await python("import sys; print('before'); print(sys.argv[1])", key).run()
    assert "before" in outcome.output
    assert key.splitlines()[1] not in outcome.output


async def test_much_output_neither_blocks_a_command_nor_is_kept() -> None:
    outcome = await python("print('x' * 5_000_000)").run()
    assert outcome == Outcome(None, "x" * MAX_OUTPUT)


async def test_a_command_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
print("started", flush=True)
time.sleep(600)
"""
    outcome = await python(script, str(pids), limit=timedelta(seconds=1)).run()
    assert outcome.error == "it was ended: still at work after 1s"
    assert outcome.output == "started"
    for pid in pids.read_text().split():
        await gone(int(pid))


async def test_a_command_is_ended_when_the_agent_stops(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"
    running = asyncio.create_task(python(script, str(pid)).run())
    async with asyncio.timeout(10):
        while not pid.exists() or not pid.read_text().endswith("\n"):
            await asyncio.sleep(0.005)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(int(pid.read_text()))


async def test_a_daemon_that_a_command_leaves_behind_does_not_hold_it_up() -> None:
    script = """
import subprocess, sys
daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(daemon.pid, flush=True)
"""
    async with asyncio.timeout(10):
        outcome = await python(script).run()
    assert outcome.error is None
    os.kill(int(outcome.output), signal.SIGKILL)


async def test_a_process_without_a_free_descriptor_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe", fail)
    assert "Too many open files" in ((await python("").run()).error or "")


async def test_descriptors_are_given_back() -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    await python("print()").run()
    await Command(("/nonexistent/program",)).run()
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


def pid_file(content: bytes) -> Callable[[], bytes]:
    return lambda: content


async def test_the_process_in_the_pid_file_is_signalled() -> None:
    script = "import signal; print(flush=True); exit(40 + signal.sigwait([signal.SIGHUP, signal.SIGUSR1]))"
    blocking = f"import signal; signal.pthread_sigmask(0, [signal.SIGHUP, signal.SIGUSR1]); {script}"
    for number in (signal.SIGHUP, signal.SIGUSR1):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", blocking, stdout=asyncio.subprocess.PIPE)
        assert process.stdout
        await process.stdout.readline()
        assert await Signal(pid_file(f"{process.pid}\n".encode()), number).run() == Outcome()
        await process.communicate()
        assert process.returncode == 40 + number


@pytest.mark.parametrize("content", [b"", b"0", b"1", b"-1", b"-5", b"+7", b"12 13", b"abc", b"9" * 30, "٣".encode()])
async def test_what_is_no_single_process_is_never_signalled(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("signalled"))
    assert "PID file" in ((await Signal(pid_file(content), signal.SIGHUP).run()).error or "")


async def test_the_agent_never_signals_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("signalled"))
    assert (await Signal(pid_file(str(os.getpid()).encode()), signal.SIGTERM).run()).error


async def test_a_process_that_is_gone_is_told() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    outcome = await Signal(pid_file(str(process.pid).encode()), signal.SIGHUP).run()
    assert "no process" in (outcome.error or "")


async def test_a_pid_file_that_cannot_be_read_is_told() -> None:
    def read() -> bytes:
        raise Unavailable("cannot read web.pid: no such file")

    assert (await Signal(read, signal.SIGHUP).run()).error == "cannot read web.pid: no such file"
