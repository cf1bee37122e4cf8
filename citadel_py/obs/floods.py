"""Floods of refusals: in each second a few lines of a kind are written, the others are counted and told as a number.

Whoever calls without a right to could else fill the disk, and make the service spend its time on it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

from citadel_py.obs import events
from citadel_py.obs.logging import get_logger

OF_A_RULE, OF_A_NETWORK = 100, 10  # lines in each window: for one reason, and for that from one network
WINDOW = timedelta(seconds=1)

_log = get_logger()


class Floods:
    """For one event loop. What it remembers is bounded by the lines that it lets through."""

    def __init__(self, *, window: timedelta = WINDOW) -> None:
        self._window = window
        self._of_rule: Counter[str] = Counter()
        self._of_network: Counter[tuple[str, str]] = Counter()
        self._left_out: Counter[str] = Counter()

    def may_write(self, rule: str, network: str) -> bool:
        """Whether a line about this refusal is to be written; one that is not is counted."""
        if not self._of_rule:
            asyncio.get_running_loop().call_later(self._window.total_seconds(), self._end_window)
        if self._of_rule[rule] >= OF_A_RULE or self._of_network[rule, network] >= OF_A_NETWORK:
            self._left_out[rule] += 1
            return False
        self._of_rule[rule] += 1
        self._of_network[rule, network] += 1
        return True

    def _end_window(self) -> None:
        left_out, self._left_out = self._left_out, Counter()
        self._of_rule.clear()
        self._of_network.clear()
        for rule, count in left_out.items():
            _log.warning(events.REFUSALS_LEFT_OUT, rule=rule, count=count)
