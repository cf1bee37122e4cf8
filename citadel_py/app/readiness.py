"""Whether this process can be counted on for certificates, in words: the checks that need more than a look.

Not ready is what would make issuing fail or be wrong; degraded is what somebody should see to
before it comes to that. Nothing here serves requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial

from citadel_py.app.runtime import elapsed, uniform, utcnow
from citadel_py.app.self_probe import SelfProbe
from citadel_py.ca.group_commit import GroupCommit
from citadel_py.ca.ledger_thread import LedgerThread
from citadel_py.config import ServeSettings
from citadel_py.core.clock import ClockWatch
from citadel_py.core.duration import format_duration
from citadel_py.core.engine import Engine
from citadel_py.core.errors import LedgerUnavailable
from citadel_py.core.issuer import Issuer
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import CAMetrics
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.search import Search

_log = get_logger()


class Readiness:
    """Looks at the clock, the authority and what comes of a request to ourselves."""

    def __init__(
        self,
        settings: ServeSettings,
        engine: Callable[[], Engine],
        *,
        ledger: SQLLedger,
        commits: GroupCommit,
        thread: LedgerThread | None,
        metrics: CAMetrics,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._ledger = ledger
        self._commits = commits
        self._thread = thread
        self._metrics = metrics
        self._clock = self._watch(newest=None)
        self.probe = self._new_probe() if settings.probe_every else None

    async def begin(self) -> None:
        """To be called before anything is recorded: what is recorded now says nothing about the clock.

        Raises LedgerUnavailable.
        """
        newest = await asyncio.to_thread(self._ledger.newest, Search(), limit=1)
        self._clock = self._watch(newest[0].entry.time if newest else None)
        self.look()

    def look(self) -> None:
        """Look at the clock; to be called every second or so."""
        jump = self._clock.look(utcnow(), elapsed())
        self._metrics.clock_behind.set(self._clock.behind.total_seconds())
        if jump is not None:
            direction = "forward" if jump.total_seconds() > 0 else "back"
            self._metrics.clock_jumps.labels(direction).inc()
            _log.warning(events.CLOCK_JUMPED, direction=direction, seconds=abs(jump.total_seconds()))

    def checks(self) -> dict[str, str | None]:
        """Each with None, or with what keeps certificates from being issued, or from being any good."""
        found = {"authority": authority_problem(self._engine().issuer, utcnow()), "clock": self._clock.problem}
        return {**found, "self-probe": self.probe.problem} if self.probe else found

    def degraded(self) -> dict[str, str | None]:
        """Each with None, or with what is not as it should be while issuing goes on."""
        found = {"authority life": self._short_life(), "clock steadiness": self._clock.doubt}
        return {**found, "last self-probe": self.probe.doubt} if self.probe else found

    def _short_life(self) -> str | None:
        engine = self._engine()
        left, wanted = engine.issuer.not_after - utcnow(), engine.policy.limits.default
        if left >= wanted:
            return None
        return f"it ends in {format_duration(left)}, so that certificates get less than {format_duration(wanted)}"

    def _watch(self, newest: datetime | None) -> ClockWatch:
        return ClockWatch(newest, unbearable=self._settings.default_ttl, is_trusted=self._settings.trust_clock)

    def _new_probe(self) -> SelfProbe:
        return SelfProbe(
            self._engine,
            self._commits.record,
            self._check_recorded,
            every=self._settings.probe_every,
            now=utcnow,
            elapsed=elapsed,
            uniform=uniform,
            metrics=self._metrics,
        )

    async def _check_recorded(self, serial: str) -> None:
        """Raise LedgerUnavailable unless this certificate is in the ledger, and join tokens can be used."""
        work = partial(_look_up, self._ledger, serial)
        try:
            await (self._thread.run(work) if self._thread else asyncio.to_thread(work))
        except LedgerUnavailable as error:
            self._commits.doubt(error)
            raise


def authority_problem(issuer: Issuer, now: datetime) -> str | None:
    """Why this issuer signs nothing now."""
    if now < issuer.not_before:
        return f"it begins at {issuer.not_before:%FT%TZ}, and the clock says {now:%FT%TZ}"
    return f"it ended at {issuer.not_after:%FT%TZ}" if now >= issuer.not_after else None


def _look_up(ledger: SQLLedger, serial: str) -> None:
    ledger.check_tokens()
    if next(ledger.entries(serial=serial), None) is None:
        raise LedgerUnavailable(f"the certificate {serial} was issued and is not there", rule="probe_unrecorded")
