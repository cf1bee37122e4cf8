"""Group commit: what becomes ready within one turn of the event loop is made durable together.

There is no timer and no thread: a lone entry waits for nothing, and under load one sync serves many.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from citadel_py.core.errors import LedgerUnavailable
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.ports import Ledger


class GroupCommit:
    """Appends entries to the ledger in groups, from one event loop.

    `observe(entries, seconds)` is told of each commit that succeeded.
    """

    def __init__(
        self, ledger: Ledger, *, observe: Callable[[int, float], None] = lambda _count, _seconds: None
    ) -> None:
        self._ledger = ledger
        self._observe = observe
        self._waiting: list[tuple[LedgerEntry, asyncio.Future[None]]] = []

    async def record(self, entry: LedgerEntry) -> None:
        """Return once the entry is durable. Raises LedgerUnavailable; then it was not recorded.

        A caller that is cancelled takes nobody with it, and its entry is recorded all the same:
        the certificate was signed.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._commit)
        self._waiting.append((entry, done))
        await done

    def _commit(self) -> None:
        """Runs after everything that was ready when the first entry came has had its turn."""
        group, self._waiting = self._waiting, []
        refusal: LedgerUnavailable | None = LedgerUnavailable("the ledger failed in a way that it should not")
        try:
            started = time.perf_counter()
            self._ledger.append([entry for entry, _ in group])
            refusal = None
            self._observe(len(group), time.perf_counter() - started)
        except LedgerUnavailable as error:
            refusal = error
        finally:  # also when the ledger has a bug: nobody is left waiting
            for _, done in group:
                _settle(done, refusal)


def _settle(done: asyncio.Future[None], refusal: LedgerUnavailable | None) -> None:
    if done.done():  # the waiter was cancelled
        return
    if refusal is None:
        done.set_result(None)
    else:  # one exception each: a traceback belongs to one task
        done.set_exception(LedgerUnavailable(refusal.message, rule=refusal.rule, hint=refusal.hints))
