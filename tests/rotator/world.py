"""A renewer with everything around it in memory: a clock that leaps from moment to moment, an authority, a disk."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from citadel_py.core.csr import parse_csr_pem
from citadel_py.core.errors import CitadelError
from citadel_py.core.issuer import Issuer
from citadel_py.core.policy import Grant
from citadel_py.core.ports import HeldSVID, SignedReply
from citadel_py.core.spiffe import SpiffeID
from citadel_py.rotator.renewer import Identity, Renewer, Report
from tests.store.things import NOW, Pki, new_pki

ID = SpiffeID.parse("spiffe://example.org/ns/default/sa/web")
HOUR = timedelta(hours=1)

Kind = TypeVar("Kind")


@dataclass
class Clock:
    moment: datetime = NOW

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, by: timedelta) -> None:
        self.moment += by


@dataclass
class FakeCA:
    """A CertificateSource. While `error` is set it refuses; `advice` tells when to renew."""

    clock: Clock
    pki: Pki = field(default_factory=new_pki)
    lifetime: timedelta = HOUR
    error: CitadelError | None = None
    advice: Callable[[datetime], datetime] | None = None
    asked: list[tuple[datetime, SpiffeID, timedelta | None, HeldSVID | None]] = field(default_factory=list)
    serials: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def sign(self, csr_pem: bytes, *, id: SpiffeID, ttl: timedelta | None, held: HeldSVID | None) -> SignedReply:
        now = self.clock()
        self.asked.append((now, id, ttl, held))
        if self.error:
            raise self.error
        chain = (self.pki.intermediate.certificate,)
        issuer = Issuer(self.pki.intermediate, chain, self.pki.bundle, self.pki.root.certificate)
        key = parse_csr_pem(csr_pem).public_key
        svid = issuer.issue(key, Grant(id, ttl or self.lifetime), now=now, serial=next(self.serials))
        return SignedReply(svid, self.pki.bundle, self.advice(now) if self.advice else None)


@dataclass
class FakeDisk:
    """An SVIDStore. While `error` is set nothing can be saved."""

    files: dict[SpiffeID, HeldSVID] = field(default_factory=dict)
    error: CitadelError | None = None

    def load(self, id: SpiffeID) -> HeldSVID | None:
        return self.files.get(id)

    def save(self, held: HeldSVID) -> None:
        if self.error:
            raise self.error
        self.files[held.svid.id] = held


class World:
    """Time passes only while the renewer sleeps, and then at once."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ca = FakeCA(self.clock)
        self.disk = FakeDisk()
        self.published: list[HeldSVID] = []
        self.reports: list[Report] = []
        self.sleeps: list[timedelta] = []
        self.on_sleep: Callable[[], None] = lambda: None
        self.is_over: Callable[[], bool] = lambda: True
        self._end = NOW + 10_000 * HOUR
        self._over = asyncio.Event()
        self.renewer = self.new_renewer()

    def new_renewer(self) -> Renewer:
        self.renewer = Renewer(
            self.ca,
            self.disk,
            publish=self.publish,
            report=self.reports.append,
            now=self.clock,
            uniform=lambda: 0.5,
            pause=self.pause,
        )
        return self.renewer

    def publish(self, held: Sequence[HeldSVID]) -> None:
        """What is published is on disk, unless the test says that the disk fails."""
        for each in held:
            assert self.disk.error or self.disk.files.get(each.svid.id) is each, "published before it was saved"
        self.published += held

    async def pause(self, longest: timedelta, wake: asyncio.Event) -> None:
        if wake.is_set():
            return
        if self.renewer.attempts_under_way:
            await wake.wait()
            return
        if self.is_over():
            self._over.set()
            await wake.wait()
            return
        self.sleeps.append(longest)
        self.clock.advance(min(longest, self._end - self.clock()))
        self.on_sleep()

    async def run_until(self, is_over: Callable[[], bool]) -> None:
        """Let the renewer work until this holds and nothing is under way."""
        self.is_over = is_over
        self._over.clear()
        running = asyncio.create_task(self.renewer.run())
        over = asyncio.create_task(self._over.wait())
        async with asyncio.timeout(60):
            await asyncio.wait((running, over), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if running.done():
            running.result()
        running.cancel()

    async def run_for(self, duration: timedelta) -> None:
        end, never = self.clock() + duration, self._end
        self._end = end
        await self.run_until(lambda: self.clock() >= end)
        self._end = never

    async def start(self, ttl: timedelta | None = None) -> None:
        """Have one identity get its first SVID."""
        await self.renewer.add(Identity(ID, ttl))
        await self.run_until(lambda: True)

    def told(self, kind: type[Kind]) -> list[Kind]:
        return [report for report in self.reports if isinstance(report, kind)]

    @property
    def held(self) -> HeldSVID:
        held = self.renewer.held(ID)
        assert held is not None
        return held
