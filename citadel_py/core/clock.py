"""Whether the wall clock can be believed. Readings of it come in, words come out; nothing here reads a clock.

Two things speak against it: a jump, seen beside a clock that nobody can set, and moments that the
ledger has seen already.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from citadel_py.core.duration import format_duration

STEP = timedelta(seconds=5)  # what slewing moves a clock between two looks is far below, even on a busy machine
SKEW = timedelta(minutes=1)  # by so much the clocks of replicas with one ledger may differ
TOLD_FOR = timedelta(minutes=10)


class ClockWatch:
    """Looks at both clocks every so often. `newest` is the latest moment in the ledger, where it has entries.

    A clock that is behind that by `unbearable` or more makes certificates that have ended when they
    are made; `unbearable` is the default lifetime of certificates. With `is_trusted` the ledger's
    moments do not count: for operators who know that the clock was wrong then, and is right now.
    """

    def __init__(self, newest: datetime | None, *, unbearable: timedelta, is_trusted: bool = False) -> None:
        self._newest = None if is_trusted else newest
        self._unbearable = unbearable
        self._is_trusted = is_trusted
        self._wall: datetime | None = None
        self._elapsed_s = 0.0
        self._step = timedelta(0)
        self._stepped_at_s = 0.0

    def look(self, wall: datetime, elapsed_s: float) -> timedelta | None:
        """Note a reading of the wall clock and of one that only goes on; by how much the former jumped, if it did."""
        expected = None if self._wall is None else self._wall + timedelta(seconds=elapsed_s - self._elapsed_s)
        self._wall, self._elapsed_s = wall, elapsed_s
        if not self._is_trusted:
            self._newest = wall if self._newest is None else max(self._newest, wall)
        if expected is None or abs(wall - expected) <= STEP:
            return None
        self._step, self._stepped_at_s = wall - expected, elapsed_s
        return self._step

    @property
    def behind(self) -> timedelta:
        """By how much the last reading is behind the newest moment that is known; zero where it is not."""
        if self._wall is None or self._newest is None:
            return timedelta(0)
        return max(self._newest - self._wall, timedelta(0))

    @property
    def problem(self) -> str | None:
        """Why issuing would be wrong, in words."""
        return self._behind_in_words() if self.behind >= self._unbearable else None

    @property
    def doubt(self) -> str | None:
        """What speaks against the clock while issuing goes on, in words."""
        if SKEW < self.behind < self._unbearable:
            return self._behind_in_words()
        if self._step and self._elapsed_s - self._stepped_at_s < TOLD_FOR.total_seconds():
            direction = "back" if self._step < timedelta(0) else "forward"
            return f"it jumped {direction} by {format_duration(abs(self._step))}"
        return None

    def _behind_in_words(self) -> str:
        return (
            f"it says {self._wall:%FT%TZ}, which is {format_duration(self.behind)} before "
            f"the newest moment that the ledger or this process has seen, {self._newest:%FT%TZ}"
        )
