"""Which identity is due next: a heap with one moment per identity. It knows no clock."""

from __future__ import annotations

import heapq
import itertools
from datetime import datetime

from citadel_py.core.spiffe import SpiffeID

_SLACK = 64  # outdated entries that are tolerated on top of as many as there are identities


class RenewalQueue:
    """One moment per identity; each operation costs at most the logarithm of their number."""

    def __init__(self) -> None:
        self._heap: list[tuple[datetime, int, SpiffeID]] = []
        self._ticket: dict[SpiffeID, int] = {}  # the entry of the heap that counts
        self._tickets = itertools.count()

    def __len__(self) -> int:
        return len(self._ticket)

    @property
    def next_at(self) -> datetime | None:
        """The earliest moment; None when the queue is empty."""
        self._drop_outdated()
        return self._heap[0][0] if self._heap else None

    def push(self, id: SpiffeID, when: datetime) -> None:
        """Have this identity due at `when`, in place of any other moment."""
        self._ticket[id] = next(self._tickets)
        heapq.heappush(self._heap, (when, self._ticket[id], id))
        if len(self._heap) > 2 * len(self._ticket) + _SLACK:
            self._heap = [entry for entry in self._heap if self._counts(entry)]
            heapq.heapify(self._heap)

    def pop_due(self, now: datetime) -> SpiffeID | None:
        """Take out the identity that has been due longest; None when none is."""
        self._drop_outdated()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, id = heapq.heappop(self._heap)
        del self._ticket[id]
        return id

    def _counts(self, entry: tuple[datetime, int, SpiffeID]) -> bool:
        _, ticket, id = entry
        return self._ticket.get(id) == ticket

    def _drop_outdated(self) -> None:
        while self._heap and not self._counts(self._heap[0]):
            heapq.heappop(self._heap)
