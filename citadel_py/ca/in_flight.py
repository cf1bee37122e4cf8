"""How many requests are in the works: bounded from above, and waited for on the way out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from citadel_py.core.errors import Unavailable


class InFlight:
    """Counts requests on one event loop, at most `limit` of them at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one request. Raises Unavailable, before any work, when there are too many."""
        if self._count >= self._limit:
            raise Unavailable(f"{self._count} requests are in the works already", rule="too_many_requests")
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                self._idle.set()

    async def drained(self) -> None:
        """Return as soon as no request is in the works."""
        await self._idle.wait()
