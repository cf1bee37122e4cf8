"""Requests in the works: bounded, so that memory is, and kept in step with the end of the server.

A grpc server that stops cancels the requests that it has received and not yet begun, and clients
that get an answer just then send the next one. So before it stops, answers are held back for a
moment: all requests that came are begun, no new ones come, and none is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from citadel_py.core.errors import CitadelError, Unavailable

QUIET = timedelta(milliseconds=30)


class InFlight:
    """Counts requests on one event loop, at most `limit` of them at a time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._count = 0
        self._begun = 0
        self._may_leave = asyncio.Event()
        self._may_leave.set()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Count one request, and let its answer out when answers may leave.

        Raises Unavailable, before any work, when there are too many.
        """
        self._begun += 1
        if self._count >= self.limit:
            raise Unavailable(f"{self._count} requests are in the works already", rule="too_many_requests")
        self._count += 1
        try:
            try:
                yield
            except CitadelError:  # a refusal is an answer too
                await self._may_leave.wait()
                raise
            await self._may_leave.wait()
        finally:
            self._count -= 1

    def hold(self) -> None:
        """Keep answers back from now on."""
        self._may_leave.clear()

    def release(self) -> None:
        """Let all answers out that were kept back."""
        self._may_leave.set()

    async def quiet(self, *, patience: timedelta) -> None:
        """Return once no request has begun for QUIET, at the latest after `patience`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience.total_seconds()):
                begun = -1
                while begun != self._begun:
                    begun = self._begun
                    await asyncio.sleep(QUIET.total_seconds())
