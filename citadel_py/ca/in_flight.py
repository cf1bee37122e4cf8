"""Requests in the works: bounded, so that memory is, and kept in step with the end of the server.

A grpc server that stops cancels the requests that it has received and not yet begun, and clients
that get an answer just then send the next one. So before it stops, answers are held back for a
moment: all requests that came are begun, no new ones come, and none is lost.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

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

    def one(self) -> Self:
        """A block that counts one request, and lets its answer out when answers may leave.

        Entering raises Unavailable, before any work, when there are too many.
        """
        return self

    async def __aenter__(self) -> None:
        self._begun += 1
        if self._count >= self.limit:
            raise Unavailable(f"{self._count} requests are in the works already", rule="too_many_requests")
        self._count += 1

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            if error is None or isinstance(error, CitadelError):  # a refusal is an answer too
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
