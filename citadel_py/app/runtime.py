"""What a service has from its surroundings: the clock, dice, signals, and tasks that are watched over."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from citadel_py.core.errors import CitadelError
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_dice = secrets.SystemRandom()
_log = get_logger()


def utcnow() -> datetime:
    """The wall clock, aware UTC."""
    return datetime.now(UTC)


def elapsed() -> float:
    """Seconds on a clock that nobody can set; the sleep of a laptop counts, where the system can tell."""
    return time.clock_gettime(_ELAPSED)


def entropy(count: int) -> bytes:
    """Random bytes fit for keys and serial numbers."""
    return os.urandom(count)


def uniform() -> float:
    """One draw from [0, 1)."""
    return _dice.random()


class Supervisor:
    """Runs the lasting tasks of a service beside its main body, which waits for `stop_requested`.

        async with Supervisor() as supervisor:
            supervisor.start("renewer", renewer.run())
            await supervisor.stop_requested.wait()
            await server.stop()

    A stop is requested by SIGTERM or SIGINT (a second one ends the process at once), and by a task
    that dies: it takes readiness down first, then the body stops things in its own order, then the
    tasks are cancelled, and the error of the first that died leaves the block. A task that returns
    early has died too.
    """

    def __init__(self) -> None:
        self.stop_requested = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._deaths: dict[str, Exception] = {}

    def start(self, name: str, task: Coroutine[Any, Any, None]) -> None:
        """Run a task that lasts as long as the service."""
        self._tasks[name] = self._group.create_task(self._watch(name, task), name=name)

    def problems(self) -> Mapping[str, str | None]:
        """A check of readiness for each task, None where it runs; and one for a stop that is under way."""
        checks: dict[str, str | None] = dict.fromkeys(self._tasks)
        checks |= {name: f"it died: {error}" for name, error in self._deaths.items()}
        checks["running"] = "stopping" if self.stop_requested.is_set() else None
        return checks

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        loop = asyncio.get_running_loop()
        for each in _SIGNALS:
            loop.add_signal_handler(each, self._on_signal, each)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop_requested.set()
        for task in self._tasks.values():
            task.cancel()
        try:
            await self._group.__aexit__(None, None, None)  # the tasks raise nothing, the body's error goes its own way
        finally:
            _release_signals()
        if error is None:
            for death in self._deaths.values():
                raise death

    async def _watch(self, name: str, task: Coroutine[Any, Any, None]) -> None:
        try:
            await _lasting(name, task)
        except Exception as error:  # noqa: BLE001 - whatever kills a task is to be told, and to end the service in order
            self._deaths[name] = error
            self.stop_requested.set()
            _log.error(events.TASK_DIED, task=name, exc_info=error)

    def _on_signal(self, received: signal.Signals) -> None:
        _release_signals()
        _log.info(events.SIGNAL_RECEIVED, signal=received.name)
        self.stop_requested.set()


async def _lasting(name: str, task: Coroutine[Any, Any, None]) -> None:
    await task
    raise CitadelError(f"the task {name} ended before the service did", rule="task_ended")


def _release_signals() -> None:
    loop = asyncio.get_running_loop()
    for each in _SIGNALS:
        with suppress(ValueError, RuntimeError):
            loop.remove_signal_handler(each)
