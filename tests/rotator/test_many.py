"""Thousands of identities in one renewer: what they cost, who comes first, and that each is by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from citadel_py.core.csr import create_csr
from citadel_py.core.errors import LimitReached, PermissionDenied, Unavailable
from citadel_py.core.ports import HeldSVID, SignedReply
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.x509svid import X509SVID
from citadel_py.rotator.renewer import LONGEST_SLEEP, MAX_ATTEMPTS_AT_ONCE, Identity, Loaded, RenewalFailed, Renewed
from tests.rotator.world import HOUR, ID, World
from tests.store.things import NOW

AWAY = Unavailable("the authority is away")
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
MANY = 10_000


def id_of(number: int) -> SpiffeID:
    return SpiffeID.parse(f"spiffe://example.org/many/{number}")


class SharedLeaf:
    """An authority that signs one leaf per moment and hands it to all: what is measured here is the renewer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sign = world.ca.sign
        self._leaves: dict[datetime, SignedReply] = {}
        self.asked: list[SpiffeID] = []
        self.refuse: Callable[[SpiffeID], Unavailable | PermissionDenied | None] = lambda _: None
        self.most = 0

    async def sign(self, csr_pem: bytes, *, id: SpiffeID, ttl: timedelta | None, held: HeldSVID | None) -> SignedReply:
        self.asked.append(id)
        self.most = max(self.most, self._world.renewer.attempts_under_way)
        await asyncio.sleep(0)
        if error := self.refuse(id):
            raise error
        now = self._world.clock()
        if now not in self._leaves:
            self._leaves[now] = await self._sign(csr_pem, id=id, ttl=ttl, held=held)
        shared = self._leaves[now]
        return SignedReply(X509SVID(id, shared.svid.chain), shared.bundle)


@pytest.fixture
def ca(world: World) -> SharedLeaf:
    ca = SharedLeaf(world)
    world.ca.sign = ca.sign  # type: ignore[method-assign]
    return ca


async def keep(world: World, count: int, *, spread: timedelta = timedelta(0)) -> None:
    """Have so many held and saved already; `spread` is over how long their renewals are."""
    await world.start()
    held = world.held
    for number in range(count):
        id, renew_at = id_of(number), held.renew_at + spread * (number / count)
        svid = X509SVID(id, held.svid.chain)
        world.disk.files[id] = HeldSVID(svid, held.key, held.bundle, held.issued_at, renew_at)
    world.published.clear()
    await world.renewer.add(*(Identity(id_of(number)) for number in range(count)))


def renewed(world: World) -> set[SpiffeID]:
    return {report.held.svid.id for report in world.told(Renewed)}


# --- what it costs


async def test_a_start_takes_few_turns_of_a_thread_and_publishes_in_few_portions(
    world: World, ca: SharedLeaf, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops = 0

    async def counting(function: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal hops
        hops += 1
        return function(*arguments)

    portions: list[int] = []
    monkeypatch.setattr(world.renewer, "_publish", lambda held: portions.append(len(held)))
    monkeypatch.setattr(asyncio, "to_thread", counting)
    await keep(world, MANY)
    assert len(world.told(Loaded)) == MANY
    assert hops < 50
    assert len(portions) < 50
    assert sum(portions) == MANY + 1
    assert ca.asked == [ID]


async def test_ten_thousand_identities_cost_little_while_nothing_is_due(world: World, ca: SharedLeaf) -> None:
    await keep(world, MANY)
    begin = time.process_time()
    await world.run_for(20 * MINUTE)
    assert time.process_time() - begin < 1.0
    assert ca.asked == [ID]


async def test_a_clock_that_leaps_over_the_renewals_of_ten_thousand_renews_each_once(
    world: World, ca: SharedLeaf
) -> None:
    """As after a suspend."""
    await keep(world, MANY, spread=10 * MINUTE)
    world.clock.advance(50 * MINUTE)
    await world.run_until(lambda: len(renewed(world)) == MANY + 1)
    assert len(ca.asked) == len(set(ca.asked)) + 1 == MANY + 2
    assert ca.most == MAX_ATTEMPTS_AT_ONCE


async def test_a_clock_that_is_set_back_asks_for_nothing(world: World, ca: SharedLeaf) -> None:
    await keep(world, MANY)
    for back in (MINUTE, 5 * HOUR, 20_000 * HOUR):
        world.clock.advance(-back)
        await world.run_for(LONGEST_SLEEP)
    assert ca.asked == [ID]


async def test_a_clock_that_goes_back_and_forth_while_all_fail_leaves_nobody_behind(
    world: World, ca: SharedLeaf
) -> None:
    await keep(world, 500)
    ca.refuse = lambda _: AWAY
    for leap in (45 * MINUTE, -20 * MINUTE, 3 * HOUR, -3 * HOUR, 40 * MINUTE):
        world.clock.advance(leap)
        await world.run_for(MINUTE)
    assert {report.id for report in world.told(RenewalFailed)} >= {id_of(number) for number in range(500)}
    ca.refuse = lambda _: None
    await world.run_for(6 * MINUTE)
    assert renewed(world) >= {id_of(number) for number in range(500)}


# --- who comes first, and who waits


async def test_of_many_that_are_due_the_nearest_end_is_renewed_first(world: World, ca: SharedLeaf) -> None:
    count = 4 * MAX_ATTEMPTS_AT_ONCE
    await world.start()
    key, ids = world.held.key, [id_of(number) for number in range(count)]
    for number, id in enumerate(ids):
        world.clock.advance(SECOND)  # each leaf is a moment's, and ends later than the one before
        reply = await ca.sign(create_csr(key, id), id=id, ttl=None, held=None)
        renew_at = NOW + 40 * MINUTE - number * SECOND  # and is due earlier
        world.disk.files[id] = HeldSVID(reply.svid, key, reply.bundle, world.clock(), renew_at)
    ca.asked.clear()
    await world.renewer.add(*map(Identity, reversed(ids)))
    world.clock.advance(45 * MINUTE)
    await world.run_until(lambda: len(renewed(world)) == count + 1)
    assert [id for id in ca.asked if id != ID] == ids


async def test_attempts_at_once_are_bounded_and_all_have_their_turn(world: World, ca: SharedLeaf) -> None:
    count = 3 * MAX_ATTEMPTS_AT_ONCE + 1
    await world.renewer.add(*(Identity(id_of(number)) for number in range(count)))
    await world.run_until(lambda: len(world.published) == count)
    assert ca.most == MAX_ATTEMPTS_AT_ONCE


async def test_each_backs_off_by_itself(world: World, ca: SharedLeaf) -> None:
    ca.refuse = lambda id: PermissionDenied("not you") if id in (id_of(0), id_of(1)) else None
    await world.renewer.add(*(Identity(id_of(number)) for number in range(100)))
    await world.run_for(10 * MINUTE)
    failures = [(report.id, report.failures) for report in world.told(RenewalFailed)]
    assert {id for id, _ in failures} == {id_of(0), id_of(1)}
    for each in (id_of(0), id_of(1)):
        numbers = [number for id, number in failures if id == each]
        assert numbers == list(range(1, len(numbers) + 1))
        assert 20 < len(numbers) < 60, "every half a minute in the end"
    assert len(renewed(world)) == 98


async def test_an_authority_that_asks_to_wait_is_left_alone_so_long(world: World, ca: SharedLeaf) -> None:
    ca.refuse = lambda _: LimitReached("too many", retry_after=20 * SECOND)
    await world.renewer.add(Identity(ID))
    await world.run_until(lambda: len(ca.asked) == 2)
    assert world.clock() - NOW >= 20 * SECOND


async def test_first_svids_wait_for_who_vouches_for_them_and_fail_no_more_than_it(world: World, ca: SharedLeaf) -> None:
    node = SpiffeID.parse("spiffe://example.org/node")
    others = [id_of(number) for number in range(3 * MAX_ATTEMPTS_AT_ONCE)]
    ca.refuse = lambda _: AWAY
    await world.renewer.add(Identity(node), *(Identity(id, voucher=node) for id in others))
    await world.run_for(5 * MINUTE)
    assert set(ca.asked) == {node}
    ca.refuse = lambda _: None
    await world.run_until(lambda: len(renewed(world)) == len(others) + 1)
    assert {report.id for report in world.told(RenewalFailed)} == {node}


async def test_a_clock_that_is_set_right_makes_a_voucher_valid_again(world: World, ca: SharedLeaf) -> None:
    await world.start()
    world.clock.advance(-10 * HOUR)
    await world.renewer.add(Identity(id_of(0), voucher=ID))
    await world.run_for(5 * MINUTE)
    assert world.renewer.held(id_of(0)) is None
    world.clock.advance(10 * HOUR)
    await world.run_for(MINUTE)
    assert world.renewer.held(id_of(0)) is not None
    asked = ca.asked.count(id_of(0))
    world.renewer.hurry(ID)
    await world.run_for(MINUTE)
    assert ca.asked.count(id_of(0)) == asked == 1, "what waited once is not renewed for it later"


async def test_what_is_held_is_renewed_whether_somebody_vouches_or_not(world: World, ca: SharedLeaf) -> None:
    """Its failures have to be heard as its end comes near."""
    await world.start()
    held, node = world.held, SpiffeID.parse("spiffe://example.org/node")
    world.disk.files[id_of(0)] = HeldSVID(
        X509SVID(id_of(0), held.svid.chain), held.key, held.bundle, held.issued_at, held.renew_at
    )
    ca.refuse = lambda _: AWAY
    await world.renewer.add(Identity(node), Identity(id_of(0), voucher=node))
    await world.run_for(HOUR)
    assert id_of(0) in {report.id for report in world.told(RenewalFailed)}
