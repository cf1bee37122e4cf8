"""Processes that run beside this one: started in sessions of their own, and gone at the end.

A child is only ever signalled by the pid that was got from starting it.
"""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

Command: TypeAlias = Sequence[str | Path]

_TAIL_LINES = 15
_TAIL_BYTES = 8192


class Failure(Exception):
    """It cannot go on. `hint` is what a person can do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ChildDied(Failure):
    """A process ended that nobody had told to end; the message holds the end of its log."""


@dataclass
class Child:
    """A process whose output goes into `log`."""

    name: str
    log: Path
    process: Process
    is_to_end: bool = False

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    async def stop(self, *, grace_s: float) -> None:
        """SIGTERM, and SIGKILL where it does not end by that."""
        self.is_to_end = True
        if self.is_running:
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), grace_s)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL."""
        self.kill_soon()
        await self.process.wait()

    def kill_soon(self) -> None:
        """As kill, without waiting for the end."""
        self.is_to_end = True
        if self.is_running:
            self.process.kill()

    def check(self) -> None:
        """Raise ChildDied if it ended by itself."""
        if not self.is_running and not self.is_to_end:
            raise _died(self.name, self.process, tail(self.log))


@dataclass
class Children:
    """All processes of a run; leaving the block stops them. They work in `directory` and log there."""

    directory: Path
    grace_s: float = 10.0
    _started: list[Child] = field(default_factory=list)

    async def start(self, name: str, command: Command, *, env: Mapping[str, str] | None = None) -> Child:
        """Start one that lasts. It has no terminal: Ctrl-C reaches us alone, and we end it."""
        log = self.directory / f"{name.replace(' ', '-')}.log"
        with log.open("ab") as file:
            process = await self._execute(command, env, stdout=file.fileno(), stderr=file.fileno())
        child = Child(name, log, process)
        self._started.append(child)
        return child

    async def output_of(self, name: str, command: Command, *, env: Mapping[str, str] | None = None) -> bytes:
        """Run one to its end; what it wrote to stdout. Raises ChildDied unless it ended well."""
        process = await self._execute(command, env, stdout=PIPE, stderr=PIPE)
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise _died(name, process, _last_lines(err))
        return out

    def check(self) -> None:
        """Raise ChildDied if one ended by itself."""
        for child in self._started:
            child.check()

    async def until(self, is_so: Callable[[], Awaitable[bool]], what: str, *, within_s: float) -> None:
        """Wait for a condition; raises ChildDied, or Failure naming `what` when it takes too long."""
        try:
            async with asyncio.timeout(within_s):
                while not await is_so():
                    self.check()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Failure(f"{what}: not within {within_s:.0f} s\n{self._tails()}") from None

    def kill_soon(self) -> None:
        """SIGKILL to all of them, for somebody who does not want to wait."""
        for child in self._started:
            child.kill_soon()

    async def stop(self) -> None:
        """End all of them, at once."""
        await asyncio.gather(*(child.stop(grace_s=self.grace_s) for child in self._started))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _execute(self, command: Command, env: Mapping[str, str] | None, *, stdout: int, stderr: int) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                *map(str, command),
                stdin=DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self.directory,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            raise Failure(f"cannot run {command[0]}: {error.strerror}") from error

    def _tails(self) -> str:
        return "\n".join(f"  {child.name}:\n{tail(child.log)}" for child in self._started if child.is_running)


def tail(log: Path) -> str:
    """The end of a log, indented."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return _last_lines(file.read())


def _last_lines(data: bytes) -> str:
    lines = data.decode(errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (nothing)"


def _died(name: str, process: Process, said: str) -> ChildDied:
    code = process.returncode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return ChildDied(f"{name} {how}; the last that it said:\n{said}")
