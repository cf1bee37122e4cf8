"""A thread for a ledger on another machine, so that the event loop turns while that one is slow, or gone.

A ledger on a local disk needs none: handing work to a thread and back costs more than its commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

from citadel_py.core.duration import format_duration
from citadel_py.core.errors import LedgerUnavailable

PATIENCE = timedelta(seconds=5)

T = TypeVar("T")


class LedgerThread:
    """Runs one piece of work at a time, in the order in which they come.

    What has no answer within `patience` is broken off by `interrupt`, again and again until it ends:
    it is told as LedgerUnavailable. Make one on the event loop that uses it, and `close` it.
    """

    def __init__(self, interrupt: Callable[[], None], *, patience: timedelta = PATIENCE) -> None:
        self._interrupt = interrupt
        self._patience = patience
        self._turn = asyncio.Lock()
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def run(self, work: Callable[[], T]) -> T:
        """What the work returns or raises. Work that has begun goes on when the caller is cancelled."""
        async with self._turn:
            if self._is_closed:
                raise LedgerUnavailable("the service is ending, and has let go of the ledger")
            done = asyncio.get_running_loop().run_in_executor(self._thread, work)
            done.add_done_callback(_look_at)
            was_broken_off = False
            while not (await asyncio.wait({done}, timeout=self._patience.total_seconds()))[0]:
                was_broken_off = True
                self._interrupt()
            try:
                return done.result()
            except LedgerUnavailable as error:
                if not was_broken_off:
                    raise
                raise self._late(error) from error

    def close(self) -> None:
        """Break off what is under way, and take no more."""
        self._is_closed = True
        self._interrupt()
        self._thread.shutdown(wait=False)

    def _late(self, error: LedgerUnavailable) -> LedgerUnavailable:
        message = f"no answer within {format_duration(self._patience)}: {error.message}"
        return LedgerUnavailable(message, rule=error.rule, hint=error.hints)


async def run_in(thread: LedgerThread | None, work: Callable[[], T]) -> T:
    """What the work returns or raises: in the thread, or at once where there is none."""
    return work() if thread is None else await thread.run(work)


def _look_at(done: asyncio.Future[T]) -> None:
    """An error that its caller did not wait for was its caller's alone."""
    if not done.cancelled():
        done.exception()
