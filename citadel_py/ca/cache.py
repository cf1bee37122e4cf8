"""A bounded cache whose entries end at a given moment. It never reads a clock."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """At most `size` entries; the one that was used least recently makes room."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[K, tuple[V, datetime]] = OrderedDict()

    def get(self, key: K, *, now: datetime) -> V | None:
        """The value, unless it is unknown or has ended by `now`."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, ends_at = entry
        if now >= ends_at:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V, *, ends_at: datetime) -> None:
        self._entries[key] = (value, ends_at)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
