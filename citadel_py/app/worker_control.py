"""How a supervisor and one of its workers talk: lines of JSON over a socket pair that nobody else can reach.

The supervisor asks, the worker answers; several questions may be open at once. Either end sees the
other's death as the end of the stream. What is said here is decided in workers.py and worker.py.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any, Self, TypeAlias

from citadel_py.core.errors import CitadelError, Unavailable

Facts: TypeAlias = Mapping[str, Any]
Handle: TypeAlias = Callable[[str, Facts], Awaitable[Facts]]

MAX_LINE = 8 * 1024 * 1024  # metrics are the longest answers: tens of KiB


class WorkerGone(Unavailable):
    """The worker closed its end: it has ended, or is about to."""

    code = "worker_gone"


class Channel:
    """One end of the socket pair. Lines longer than MAX_LINE end it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def on(cls, end: socket.socket) -> Self:
        """Take over an end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=MAX_LINE))

    async def receive(self) -> Facts | None:
        """The next line; None at the end."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):  # ValueError: a line beyond the limit
            return None
        if not line.endswith(b"\n"):  # the other end died, maybe in the middle of a line
            return None
        facts: Facts = json.loads(line)
        return facts

    async def send(self, facts: Facts) -> None:
        """Send a line. Where the other end is gone nothing happens: `receive` tells."""
        with suppress(OSError):
            self._writer.write(json.dumps(facts, separators=(",", ":")).encode() + b"\n")
            await self._writer.drain()

    def close(self) -> None:
        """The other end receives None."""
        self._writer.close()


class Asker:
    """The supervisor's end. `run` it beside whoever asks."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = count(1)
        self._open: dict[int, asyncio.Future[Facts]] = {}
        self.gone = asyncio.Event()

    async def run(self) -> None:
        """Hand out answers until the worker is gone, which `gone` tells then."""
        try:
            while (line := await self._channel.receive()) is not None:
                answer = self._open.pop(line["id"], None)  # None: nobody waits any more
                if answer is not None and not answer.done():
                    _settle(answer, line)
        finally:
            self.gone.set()
            for answer in self._open.values():
                if not answer.done():
                    answer.set_exception(_gone())
            self._open.clear()

    async def ask(self, what: str, facts: Facts | None = None, *, within: timedelta) -> Facts:
        """The answer. Raises the worker's CitadelError, WorkerGone, TimeoutError."""
        if self.gone.is_set():
            raise _gone()
        number = next(self._numbers)
        answer: asyncio.Future[Facts] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        try:
            async with asyncio.timeout(within.total_seconds()):
                await self._channel.send({"id": number, "do": what, "with": dict(facts or {})})
                return await answer
        finally:
            self._open.pop(number, None)


async def obey(channel: Channel, handle: Handle) -> None:
    """The worker's end: answer with what `handle` returns, or the CitadelError that it raises, until the end."""
    async with asyncio.TaskGroup() as group:
        while (line := await channel.receive()) is not None:
            group.create_task(_answer(channel, handle, line))


async def _answer(channel: Channel, handle: Handle, line: Facts) -> None:
    try:
        answer = {"ok": await handle(line["do"], line["with"])}
    except CitadelError as error:
        answer = {"error": error_facts(error)}
    await channel.send({"id": line["id"], **answer})


def error_facts(error: CitadelError) -> Facts:
    """An error as it goes over the channel."""
    return {"code": error.code, "message": error.message, "rule": error.rule, "hints": list(error.hints)}


def error_of(facts: Facts) -> CitadelError:
    """The same error at the other end, of the same class."""
    kind = next((each for each in _kinds(CitadelError) if each.code == facts["code"]), CitadelError)
    return kind(facts["message"], rule=facts["rule"], hint=facts["hints"])


def _kinds(kind: type[CitadelError]) -> list[type[CitadelError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _kinds(child))]


def _settle(answer: asyncio.Future[Facts], line: Facts) -> None:
    if "error" in line:
        answer.set_exception(error_of(line["error"]))
    else:
        answer.set_result(line["ok"])


def _gone() -> WorkerGone:
    return WorkerGone("the worker is gone")
