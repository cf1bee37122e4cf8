"""Group commit: what is ready at about the same time is made durable together.

There is no timer: a lone entry waits for a few empty turns of the event loop, which is less than a
tenth of a millisecond, and under load one sync serves many. A ledger on another machine is written
in a thread, while the next group gathers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TypeAlias

from citadel_py.ca.ledger_thread import LedgerThread
from citadel_py.core.errors import LedgerUnavailable
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.ports import Ledger

DOUBT = timedelta(seconds=10)
# grpc.aio hands over one request at a time and takes about six turns of the event loop for it. Work
# that has arrived is therefore all in when a few more turns than that have brought nothing new.
QUIET_TURNS = 8
MAX_GROUP = 256  # bounds how long the first of a group can wait for the others

Group: TypeAlias = Sequence[tuple[LedgerEntry, asyncio.Future[None]]]


class GroupCommit:
    """Appends entries to the ledger in groups, in their order, from one event loop.

    Without a `thread` the loop stands still during a commit: right for a local disk alone.
    `observe(entries, seconds)` is told of each commit that succeeded.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        thread: LedgerThread | None = None,
        observe: Callable[[int, float], None] = lambda _count, _seconds: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._thread = thread
        self._under_way: asyncio.Task[None] | None = None
        self._observe = observe
        self._monotonic = monotonic
        self._waiting: list[tuple[LedgerEntry, asyncio.Future[None]]] = []
        self._failure: LedgerUnavailable | None = None
        self._failed_at = 0.0

    @property
    def problem(self) -> str | None:
        """Why nothing can be recorded, as far as is known.

        It is forgotten DOUBT after the last failure: where work stays away because of it, only new
        work can find out that the ledger is back.
        """
        if self._failure is None or self._monotonic() - self._failed_at > DOUBT.total_seconds():
            return None
        return self._failure.message

    def doubt(self, error: LedgerUnavailable) -> None:
        """Take note of a failure that somebody else had with the same ledger."""
        self._failure, self._failed_at = error, self._monotonic()

    async def record(self, entry: LedgerEntry) -> None:
        """Return once the entry is durable. Raises LedgerUnavailable; then it was not recorded.

        A caller that is cancelled takes nobody with it, and its entry is recorded all the same:
        the certificate was signed.
        """
        done = asyncio.get_running_loop().create_future()
        if not self._waiting and self._under_way is None:
            self._begin()
        self._waiting.append((entry, done))
        await done

    def _begin(self) -> None:
        asyncio.get_running_loop().call_soon(self._gather, 0, QUIET_TURNS)

    def _gather(self, seen: int, turns_left: int) -> None:
        """Runs once per turn while entries wait. `seen` of them were there in the last turn."""
        count = len(self._waiting)
        turns_left = turns_left - 1 if count == seen else QUIET_TURNS
        if turns_left > 0 and count < MAX_GROUP:
            asyncio.get_running_loop().call_soon(self._gather, count, turns_left)
        else:
            self._commit()

    def _commit(self) -> None:
        group, self._waiting = self._waiting, []
        append = partial(self._ledger.append, [entry for entry, _ in group])
        if self._thread is None:
            with self._settling(group):
                append()
        else:
            self._under_way = asyncio.create_task(self._commit_in(self._thread, append, group))

    async def _commit_in(self, thread: LedgerThread, append: Callable[[], None], group: Group) -> None:
        try:
            with self._settling(group):
                await thread.run(append)
        finally:
            self._under_way = None
            if self._waiting:
                self._begin()

    @contextmanager
    def _settling(self, group: Group) -> Iterator[None]:
        """What the commit inside comes to is told to all who wait for it."""
        refusal: LedgerUnavailable | None = LedgerUnavailable("the ledger failed in a way that it should not")
        started = time.perf_counter()
        try:
            yield
            refusal = None
        except LedgerUnavailable as error:
            refusal = error
        finally:  # also when the ledger has a bug: nobody is left waiting
            self._failure, self._failed_at = refusal, self._monotonic()
            for _, done in group:
                _settle(done, refusal)
        if refusal is None:
            self._observe(len(group), time.perf_counter() - started)


def _settle(done: asyncio.Future[None], refusal: LedgerUnavailable | None) -> None:
    if done.done():  # the waiter was cancelled
        return
    if refusal is None:
        done.set_result(None)
    else:  # one exception each: a traceback belongs to one task
        done.set_exception(LedgerUnavailable(refusal.message, rule=refusal.rule, hint=refusal.hints))
