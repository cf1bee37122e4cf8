"""How often something may happen: token buckets by key, in bounded memory. Nothing here waits or reads a clock.

A bucket has the form of GCRA (ITU-T I.371 annex A): one number, the moment at which it is full
again. A key that is not kept is a full bucket.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta

from citadel_py.core.errors import InvalidConfiguration

_EPSILON_S = 1e-6  # what adding up parts of a second may be off


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` at once, and `count` in each `window` on average."""

    count: int
    window: timedelta

    def __post_init__(self) -> None:
        if self.count < 1 or self.window <= timedelta(0):
            raise InvalidConfiguration(
                f"a limit of {self.count} in {self.window.total_seconds():g} s lets nothing pass", rule="rate_limit"
            )


class Buckets:
    """A bucket for each key, at most `size` of them: who was seen least recently is forgotten.

    Being forgotten is to have a full bucket again, so that nobody is ever punished for the number of
    others; what all of them together may do is for another limit to bound.
    """

    __slots__ = ("_full_at", "_interval", "_size", "_tolerance")

    def __init__(self, rate: Rate, *, size: int) -> None:
        window_s = rate.window.total_seconds()
        self._interval = window_s / rate.count
        self._tolerance = window_s - self._interval + _EPSILON_S
        self._size = size
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_s(self, key: Hashable, at: float) -> float:
        """Seconds until one more fits; 0 where it fits now."""
        full_at = self._full_at.get(key)
        return 0.0 if full_at is None else max(0.0, full_at - at - self._tolerance)

    def take(self, key: Hashable, at: float) -> None:
        """Count one, whether it fits or not."""
        full_at = self._full_at.pop(key, at)
        self._full_at[key] = max(full_at, at) + self._interval
        if len(self._full_at) > self._size:
            self._full_at.popitem(last=False)

    def give_back(self, key: Hashable) -> None:
        """One that was counted is counted no more."""
        if key in self._full_at:
            self._full_at[key] -= self._interval


class Elapsed:
    """Seconds since the first look at a wall clock. A clock that is set back stands still for a moment, no longer."""

    __slots__ = ("_last", "_shift")

    def __init__(self) -> None:
        self._last: float | None = None
        self._shift = 0.0

    def at(self, now: datetime) -> float:
        """Never less than before."""
        seconds = now.timestamp()
        if self._last is None:
            self._shift = -seconds
        elif seconds < self._last:
            self._shift += self._last - seconds
        self._last = seconds
        return seconds + self._shift
