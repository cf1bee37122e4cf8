"""Asks all parts again and again how they are, and writes it into the history."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from demo_parts.history import History
from demo_parts.mesh import Mesh
from demo_parts.wire import Side, leaves

_RENEW_AT = "citadel_svid_renew_at_timestamp_seconds"
_RENEWALS = "citadel_svid_renewals_total"


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = asyncio.get_running_loop().time()

    @property
    def seconds(self) -> float:
        return asyncio.get_running_loop().time() - self._start


@dataclass
class Outage:
    """Kills the CA once, a few seconds before a renewal is due, and starts it again after 15 seconds."""

    mesh: Mesh
    history: History
    earliest_s: float
    lasts_s: float = 15.0
    lead: timedelta = timedelta(seconds=8)
    _killed_at_s: float | None = None
    _is_started_again: bool = False

    @property
    def is_over(self) -> bool:
        return self._is_started_again and self.history.is_ca_up

    async def tick(self, at_s: float) -> None:
        """Do what is due."""
        if self._killed_at_s is None:
            if at_s >= self.earliest_s and self._is_a_renewal_near():
                await self._kill(at_s)
        elif not self._is_started_again and at_s >= self._killed_at_s + self.lasts_s:
            self._is_started_again = True
            self.history.note("the CA is started again", at_s=at_s)
            await self.mesh.launch_ca()

    async def _kill(self, at_s: float) -> None:
        self._killed_at_s = at_s
        await self.mesh.kill_ca()
        self.history.ca_was_killed(at_s=at_s)

    def _is_a_renewal_near(self) -> bool:
        moment = self.history.next_renewal()
        return moment is not None and moment - datetime.now(UTC) <= self.lead


@dataclass
class Watch:
    """Writes what it finds into `history`."""

    mesh: Mesh
    history: History
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    outage: Outage | None = None

    async def tick(self) -> None:
        """Ask everybody once. Raises ChildDied."""
        self.mesh.children.check()
        await asyncio.gather(self._ask_ca(), *map(self._ask_agent, Side))
        if self.outage:
            await self.outage.tick(self.stopwatch.seconds)

    def on_response(self, headers: Mapping[str, str]) -> None:
        """For the load: a request came back with these headers."""
        for side, leaf in leaves(headers).items():
            self.history.saw(side, leaf, at_s=self.stopwatch.seconds)

    async def _ask_ca(self) -> None:
        is_up = await self.mesh.is_ca_ready()
        self.history.ca_is(up=is_up, at_s=self.stopwatch.seconds)

    async def _ask_agent(self, side: Side) -> None:
        try:
            renew_at, tries_in_vain = read_plan(await self.mesh.agent_metrics(side))
        except (aiohttp.ClientError, TimeoutError):
            return  # it is asked again soon, and if it died that is told elsewhere
        at_s = self.stopwatch.seconds
        self.history.agent_told(side, renew_at=renew_at, tries_in_vain=tries_in_vain, at_s=at_s)


def read_plan(metrics: str) -> tuple[datetime | None, int]:
    """Of an agent's metrics: when the next renewal is due, and how many attempts found no CA."""
    renew_at, tries_in_vain = math.nan, 0.0
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == _RENEW_AT:
                renew_at = sample.value
            elif sample.name == _RENEWALS and sample.labels["result"] == "unavailable":
                tries_in_vain = sample.value
    return (None if math.isnan(renew_at) else datetime.fromtimestamp(renew_at, UTC)), int(tries_in_vain)
