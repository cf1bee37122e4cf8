"""Which identity comes next: a heap of moments, and a heap of those that are due, the most urgent first.

It knows no clock.
"""

from __future__ import annotations

import heapq
import itertools
from datetime import datetime
from typing import TypeAlias

from citadel_py.core.spiffe import SpiffeID

_SLACK = 64  # outdated entries that are tolerated on top of as many as there are identities

# What it is ordered by, the ticket that says whether it counts, the identity, and its end.
_Entry: TypeAlias = tuple[datetime, int, SpiffeID, datetime]


class RenewalQueue:
    """One moment per identity; each operation costs at most the logarithm of their number."""

    def __init__(self) -> None:
        self._by_moment: list[_Entry] = []
        self._due: list[_Entry] = []
        self._due_since: datetime | None = None
        self._ticket: dict[SpiffeID, int] = {}  # the entry that counts
        self._tickets = itertools.count()

    def __len__(self) -> int:
        return len(self._ticket)

    @property
    def next_at(self) -> datetime | None:
        """When there is something to do: a moment that has passed where something is due; None when it is empty."""
        _drop(self._due, self._ticket)
        if self._due:
            return self._due_since
        _drop(self._by_moment, self._ticket)
        return self._by_moment[0][0] if self._by_moment else None

    def push(self, id: SpiffeID, when: datetime, end: datetime | None = None) -> None:
        """Have this identity due at `when`, in place of any other moment.

        Of several that are due, the one with the earliest `end` comes first; without one it is `when`.
        """
        self._ticket[id] = next(self._tickets)
        heapq.heappush(self._by_moment, (when, self._ticket[id], id, end or when))
        if len(self._by_moment) + len(self._due) > 2 * len(self._ticket) + _SLACK:
            self._by_moment, self._due = self._counting(self._by_moment), self._counting(self._due)

    def pop_due(self, now: datetime) -> SpiffeID | None:
        """Take out the most urgent identity of those that are due; None when none is."""
        while self._by_moment and self._by_moment[0][0] <= now:
            _, ticket, id, end = heapq.heappop(self._by_moment)
            heapq.heappush(self._due, (end, ticket, id, end))
        _drop(self._due, self._ticket)
        self._due_since = now
        if not self._due:
            return None
        _, _, id, _ = heapq.heappop(self._due)
        del self._ticket[id]
        return id

    def _counting(self, entries: list[_Entry]) -> list[_Entry]:
        kept = [entry for entry in entries if self._ticket.get(entry[2]) == entry[1]]
        heapq.heapify(kept)
        return kept


def _drop(entries: list[_Entry], tickets: dict[SpiffeID, int]) -> None:
    """Take what no longer counts from the front."""
    while entries and tickets.get(entries[0][2]) != entries[0][1]:
        heapq.heappop(entries)
