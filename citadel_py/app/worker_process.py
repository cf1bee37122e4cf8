"""One worker as its supervisor sees it: a process that was started, a channel to it, and its end.

Workers are started, never forked: grpc does not survive a fork, and the supervisor does without it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

from citadel_py.app import notify
from citadel_py.app.worker_control import Asker, Channel
from citadel_py.config import ServeSettings

_MODULE = "citadel_py.app.worker"
# Of a worker whose end of the channel is closed: it has ended, or hangs and is killed.
_GONE_WITHIN = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Beginning:
    """What each worker is told first. It goes over the socket pair alone: no argument and no variable has it."""

    settings: ServeSettings
    passphrase: bytes | None = field(repr=False)

    def facts(self, number: int) -> dict[str, Any]:
        """As JSON."""
        passphrase = None if self.passphrase is None else base64.b64encode(self.passphrase).decode()
        settings = self.settings.model_dump(mode="json", exclude_defaults=True)
        return {"number": number, "settings": settings, "passphrase": passphrase}


class WorkerProcess:
    """Made by `start`; `end` is to be called in any case."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self._process = process
        self._channel = channel
        self._asker = Asker(channel)
        self._listening = asyncio.create_task(self._asker.run())
        self.ask = self._asker.ask

    @classmethod
    async def start(cls, number: int, beginning: Beginning) -> Self:
        """A new process that has been told its beginning. Raises OSError where there can be none."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                    process_group=0,  # Ctrl-C on a terminal is for the supervisor
                )
            except BaseException:
                ours.close()
                raise
        channel = await Channel.on(ours)
        await channel.send(beginning.facts(number))
        return cls(process, channel)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def gone(self) -> asyncio.Event:
        """Set when it has closed its end of the channel."""
        return self._asker.gone

    async def why_gone(self) -> str:
        """How it ended, in words."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GONE_WITHIN.total_seconds()):
                await self._process.wait()
        code = self._process.returncode
        if code is None:
            return "it closed its control channel"
        return f"it ended with code {code}" if code >= 0 else f"it died ({_signal_name(-code)})"

    def kill(self) -> None:
        """End it at once; `gone` follows."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self, grace: timedelta = timedelta(0)) -> None:
        """Ask it to end, if it is given time; kill it after that. It has ended when this returns."""
        try:
            if grace:
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace.total_seconds()):
                        await self._channel.send({"id": 0, "do": "stop", "with": {}})
                        await self._process.wait()
        finally:
            self.kill()
            self._listening.cancel()
            self._channel.close()
            await self._process.wait()


def _environment() -> dict[str, str]:
    """Of this process, but for the service manager's; imports are looked for where this process does."""
    kept = {name: value for name, value in os.environ.items() if name not in notify.VARIABLES}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _signal_name(number: int) -> str:
    try:
        return f"signal {number}, {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"
