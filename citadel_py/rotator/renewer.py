"""Keeps every identity's SVID fresh: one sleeper over a heap of moments, each identity by itself.

The last good SVID stays until a better one is saved. Nothing here ends because an authority is away,
a disk is full or a clock jumps: it tries again, more often as the end comes near, and says so.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from citadel_py.core.csr import create_csr
from citadel_py.core.errors import CitadelError, Unavailable
from citadel_py.core.keys import KeyType, generate_key
from citadel_py.core.ports import CertificateSource, HeldSVID, Now, SVIDStore, Uniform
from citadel_py.core.renewal import Backoff, RenewalPolicy
from citadel_py.core.spiffe import SpiffeID
from citadel_py.rotator.judgement import Urgency, is_valid, may_wait_for_disk, renewal_moment, urgency
from citadel_py.rotator.queue import RenewalQueue

# A sleep is measured by a clock that stands still while the machine is suspended, and the wall clock
# can be set: so it is looked at this often at least.
LONGEST_SLEEP: Final = timedelta(seconds=30)
MAX_ATTEMPTS_AT_ONCE: Final = 16
_LOADED_AT_ONCE: Final = 256  # in one thread, before proxies get them and the loop its turn
_WITH_SVID: Final = Backoff()
_WITHOUT: Final = Backoff(maximum=timedelta(seconds=30))  # somebody is waiting for it
_SET_BACK: Final = timedelta(seconds=1)  # more than this and the wall clock was set back

Pause: TypeAlias = Callable[[timedelta, asyncio.Event], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Identity:
    """What is to be kept fresh. Without a `ttl` the authority chooses the lifetime.

    The first SVID of one with a `voucher` is not asked for before that identity has a valid one.
    """

    id: SpiffeID
    ttl: timedelta | None = None
    voucher: SpiffeID | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """An SVID was found from before a restart; it is published unless it has expired."""

    held: HeldSVID
    is_valid: bool


@dataclass(frozen=True, slots=True)
class Renewed:
    """A new SVID is saved and published. `previous` is the one that it replaces."""

    held: HeldSVID
    previous: HeldSVID | None


@dataclass(frozen=True, slots=True)
class RenewalFailed:
    """No new SVID this time; `held` stays."""

    id: SpiffeID
    error: CitadelError
    failures: int
    retry_at: datetime
    urgency: Urgency
    held: HeldSVID | None


@dataclass(frozen=True, slots=True)
class NotSaved:
    """A new SVID is in memory only. It is published if the old one cannot wait any longer."""

    held: HeldSVID
    error: CitadelError
    retry_at: datetime
    is_published: bool


Report: TypeAlias = Loaded | Renewed | RenewalFailed | NotSaved


async def pause(longest: timedelta, wake: asyncio.Event) -> None:
    """Wait until woken, at most for `longest`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(longest.total_seconds()):
            await wake.wait()


@dataclass(slots=True)
class _Entry:
    identity: Identity
    held: HeldSVID | None = None  # what proxies have, or what was found expired
    unsaved: HeldSVID | None = None
    failures: int = 0


class Renewer:
    """`add` identities, then `run` until cancelled.

    `publish` is called with the SVIDs that proxies should have, `report` with everything that
    happens; both on the event loop.
    """

    def __init__(
        self,
        source: CertificateSource,
        store: SVIDStore,
        *,
        publish: Callable[[Sequence[HeldSVID]], None],
        report: Callable[[Report], None],
        now: Now,
        uniform: Uniform,
        policy: RenewalPolicy | None = None,
        pause: Pause = pause,
        attempts_at_once: int = MAX_ATTEMPTS_AT_ONCE,
    ) -> None:
        self._source = source
        self._store = store
        self._publish = publish
        self._report = report
        self._now = now
        self._uniform = uniform
        self._policy = policy or RenewalPolicy()
        self._pause = pause
        self._attempts_at_once = attempts_at_once
        self._queue = RenewalQueue()
        self._entries: dict[SpiffeID, _Entry] = {}
        self._wake = asyncio.Event()
        self._under_way: set[SpiffeID] = set()
        self._waiting: defaultdict[SpiffeID, set[SpiffeID]] = defaultdict(set)  # by who has to vouch for them
        self._seen = now()

    @property
    def next_at(self) -> datetime | None:
        """When the next renewal or attempt is due."""
        return self._queue.next_at

    @property
    def attempts_under_way(self) -> int:
        """How many renewals are going on at this moment."""
        return len(self._under_way)

    def held(self, id: SpiffeID) -> HeldSVID | None:
        """The SVID that this identity has, which may have expired; None while it has none."""
        entry = self._entries.get(id)
        return entry.held if entry else None

    async def add(self, *identities: Identity) -> None:
        """Take up what was saved, publish what of it is valid, and see to the renewal of all.

        Raises CitadelError where what was saved cannot be read at all.
        """
        for at in range(0, len(identities), _LOADED_AT_ONCE):
            self._take_up(await asyncio.to_thread(self._load, identities[at : at + _LOADED_AT_ONCE]))
        self._wake.set()

    def hurry(self, id: SpiffeID) -> None:
        """Renew this one now."""
        if id not in self._under_way:
            self._push(self._entries[id], self._now())
            self._wake.set()

    async def run(self) -> None:
        """Renew whatever is due, until cancelled."""
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._notice_a_clock_set_back()
                self._begin_due(attempts)
                await self._pause(self._until_next(), self._wake)
                self._wake.clear()

    def _load(self, identities: Sequence[Identity]) -> list[_Entry]:
        return [_Entry(each, self._store.load(each.id)) for each in identities]

    def _take_up(self, entries: Sequence[_Entry]) -> None:
        now = self._now()
        found = [(entry, entry.held, is_valid(entry.held, now)) for entry in entries if entry.held]
        self._entries |= {entry.identity.id: entry for entry in entries}
        if valid := [held for _, held, may_be_used in found if may_be_used]:
            self._publish(valid)
        due = {entry.identity.id: held.renew_at for entry, held, may_be_used in found if may_be_used}
        for _, held, may_be_used in found:
            self._report(Loaded(held, may_be_used))
        for entry in entries:
            self._push(entry, due.get(entry.identity.id, now))

    def _push(self, entry: _Entry, when: datetime) -> None:
        self._queue.push(entry.identity.id, when, entry.held.svid.not_after if entry.held else None)

    def _begin_due(self, attempts: asyncio.TaskGroup) -> None:
        while len(self._under_way) < self._attempts_at_once and (id := self._queue.pop_due(self._now())):
            entry = self._entries[id]
            if entry.held is None and (voucher := entry.identity.voucher) and not self._has_valid(voucher):
                self._waiting[voucher].add(id)
                self._push(entry, self._now() + LONGEST_SLEEP)  # a clock that is set right vouches, too
                continue
            self._under_way.add(id)
            attempts.create_task(self._attempt(entry))

    def _has_valid(self, id: SpiffeID) -> bool:
        held = self.held(id)
        return held is not None and is_valid(held, self._now())

    def _until_next(self) -> timedelta:
        """How long there is nothing to do; a free place wakes the sleeper."""
        next_at = self._queue.next_at
        if next_at is None or len(self._under_way) >= self._attempts_at_once:
            return LONGEST_SLEEP
        return max(timedelta(0), min(next_at - self._now(), LONGEST_SLEEP))

    def _notice_a_clock_set_back(self) -> None:
        """Another attempt waits for a pause to pass, not for a moment that has moved away."""
        now, seen = self._now(), self._seen
        self._seen = now
        if now < seen - _SET_BACK:
            for id, entry in self._entries.items():
                if entry.failures:
                    self.hurry(id)

    async def _attempt(self, entry: _Entry) -> None:
        try:
            fresh = entry.unsaved
            if fresh is None or self._now() >= fresh.renew_at:
                fresh = await self._ask(entry)
        except CitadelError as error:
            self._failed(entry, error)
        else:
            await self._keep(entry, fresh)
        finally:
            self._under_way.discard(entry.identity.id)
            self._wake.set()

    async def _ask(self, entry: _Entry) -> HeldSVID:
        """A new SVID for a new key. Raises CitadelError."""
        identity, key = entry.identity, generate_key(KeyType.P256)
        csr = create_csr(key, identity.id)
        reply = await self._source.sign(csr, id=identity.id, ttl=identity.ttl, held=entry.held)
        now = self._now()
        renew_at = renewal_moment(reply, self._policy, now=now, uniform=self._uniform())
        return HeldSVID(reply.svid, key, reply.bundle, issued_at=now, renew_at=renew_at)

    async def _keep(self, entry: _Entry, fresh: HeldSVID) -> None:
        """Saved, then published. Nothing is awaited between the reply and the save, so that none is lost."""
        entry.unsaved = fresh
        try:
            await asyncio.to_thread(self._store.save, fresh)
        except CitadelError as error:
            self._not_saved(entry, fresh, error)
            return
        previous, entry.unsaved, entry.failures = entry.held, None, 0
        self._hand_out(entry, fresh)
        self._push(entry, fresh.renew_at)
        self._report(Renewed(fresh, previous if previous is not fresh else None))

    def _hand_out(self, entry: _Entry, fresh: HeldSVID) -> None:
        if entry.held is not fresh:
            entry.held = fresh
            self._publish([fresh])
            for id in self._waiting.pop(fresh.svid.id, ()):
                if self._entries[id].held is None:
                    self.hurry(id)

    def _failed(self, entry: _Entry, error: CitadelError) -> None:
        retry_at = self._try_again(entry, error)
        pressing = urgency(entry.held, self._now())
        self._report(RenewalFailed(entry.identity.id, error, entry.failures, retry_at, pressing, entry.held))

    def _not_saved(self, entry: _Entry, fresh: HeldSVID, error: CitadelError) -> None:
        if not may_wait_for_disk(entry.held, self._now()):
            self._hand_out(entry, fresh)
        self._report(NotSaved(fresh, error, self._try_again(entry, error), is_published=entry.held is fresh))

    def _try_again(self, entry: _Entry, error: CitadelError) -> datetime:
        entry.failures += 1
        now, held = self._now(), entry.held
        backoff = _WITH_SVID if held is not None and is_valid(held, now) else _WITHOUT
        asked = error.retry_after if isinstance(error, Unavailable) else None
        not_after = held.svid.not_after if held else None
        retry_at = backoff.retry_at(now, entry.failures, not_after, self._uniform(), asked=asked)
        self._push(entry, retry_at)
        return retry_at
