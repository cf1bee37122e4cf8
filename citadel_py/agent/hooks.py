"""What tells a program that its files have changed: a command, or a signal to the process of a PID file.

A hook never raises for what it meets: its outcome says it. No shell, and an end to each command.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from citadel_py.core.duration import format_duration
from citadel_py.core.errors import BadInput, CitadelError
from citadel_py.obs.redaction import redact_text

TIME_LIMIT: Final = timedelta(seconds=30)
MAX_OUTPUT: Final = 4096  # bytes that are kept
MAX_PID_FILE: Final = 64  # bytes
MAX_PID_DIGITS: Final = 9
_LAST_WORDS_S: Final = 0.5  # of a command that has ended, while a child of it holds its output open
_KILL_AFTER_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a hook ended; without an `error` it went well. `output` is redacted and bounded."""

    error: str | None = None
    output: str = ""


class Hook(Protocol):
    """Run after the files have changed, never twice at once."""

    @property
    def kind(self) -> str:
        """`exec` or `signal`."""
        ...

    async def run(self) -> Outcome:
        """Do it once."""
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its arguments. After `limit` it is ended, with all that it started."""

    arguments: Sequence[str]
    limit: timedelta = TIME_LIMIT

    @property
    def kind(self) -> str:
        return "exec"

    async def run(self) -> Outcome:
        try:
            with closing(_Output()) as output:
                failure = await self._end(await self._start(output))
                return Outcome(failure, await output.text())
        except (OSError, ValueError) as error:  # of the system, and for a NUL in an argument
            return Outcome(f"{self.arguments[0]} cannot be run: {error}")

    async def _start(self, output: _Output) -> Process:
        """In a session of its own: it can be ended with its children, and gets no Ctrl-C of ours."""
        out = output.writing
        try:
            return await asyncio.create_subprocess_exec(
                *self.arguments, stdin=DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        finally:
            os.close(out)

    async def _end(self, process: Process) -> str | None:
        """What went wrong. Nothing of the command outlives us where it is still at work."""
        try:
            async with asyncio.timeout(self.limit.total_seconds()):
                code = await process.wait()
        except TimeoutError:
            await _stop(process)
            return f"it was ended: still at work after {format_duration(self.limit)}"
        except asyncio.CancelledError:
            await _stop(process)
            raise
        return None if code == 0 else f"exit code {code}" if code > 0 else f"killed by signal {-code}"


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal to the process whose number is in a file, which is read anew each time."""

    read_pid_file: Callable[[], bytes]
    number: signal.Signals

    @property
    def kind(self) -> str:
        return "signal"

    async def run(self) -> Outcome:
        try:
            content = await asyncio.to_thread(self.read_pid_file)
            os.kill(_pid(content), self.number)
        except CitadelError as error:
            return Outcome(error.message)
        except ProcessLookupError:
            return Outcome("there is no process with the number in the PID file")
        except PermissionError:
            return Outcome("the process in the PID file belongs to another user")
        return Outcome()


def _pid(content: bytes) -> int:
    """Raises BadInput. To `kill`, 0 and less are groups and all processes; 1 is the system's first."""
    text = content.strip()
    pid = int(text) if text.isdigit() and len(text) <= MAX_PID_DIGITS else 0
    if pid <= 1 or pid == os.getpid():
        raise BadInput(f"the PID file holds {content[:20]!r}, which is no process to be signalled", rule="pid_file")
    return pid


class _Output:
    """A pipe for what a command says. The beginning is kept, the rest is read and forgotten."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._kept = b""
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._reading, self._read)

    async def text(self) -> str:
        """What there is when the command has ended; a child of it may hold the pipe open for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._ended.wait()
        return redact_text(self._kept.decode("utf-8", "replace").strip())

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._reading)
        os.close(self._reading)

    def _read(self) -> None:
        data = os.read(self._reading, 1 << 16)
        self._kept += data[: MAX_OUTPUT - len(self._kept)]
        if not data:
            asyncio.get_running_loop().remove_reader(self._reading)
            self._ended.set()


async def _stop(process: Process) -> None:
    """End it and all of its session that listens, the friendly way first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILL_AFTER_S):
                await process.wait()
