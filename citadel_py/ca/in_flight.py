"""How many requests are in the works at a time: bounded, so that memory is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from citadel_py.core.errors import Unavailable


class InFlight:
    """Counts requests on one event loop, at most `limit` of them at a time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one request. Raises Unavailable, before any work, when there are too many."""
        if self._count >= self.limit:
            raise Unavailable(f"{self._count} requests are in the works already", rule="too_many_requests")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
