"""Renewals on a clock that leaps: no test here waits."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

import pytest

from citadel_py.core.errors import PermissionDenied, Unavailable
from citadel_py.core.keys import same_public_key
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.rotator.judgement import Urgency
from citadel_py.rotator.renewer import (
    LONGEST_SLEEP,
    Identity,
    Loaded,
    NotSaved,
    RenewalFailed,
    Renewed,
    pause,
)
from tests.rotator.world import HOUR, ID, World

AWAY = Unavailable("the authority is away")
DISK_FULL = Unavailable("cannot write: no space left on device", rule="file_not_written")
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


# --- the usual


async def test_an_identity_without_an_svid_gets_one_at_once(world: World) -> None:
    await world.start()
    assert [each.svid.id for each in world.published] == [ID]
    assert world.ca.asked == [(world.clock(), ID, None, None)]


async def test_the_wanted_lifetime_is_asked_for(world: World) -> None:
    await world.start(ttl=2 * HOUR)
    (_, _, ttl, _) = world.ca.asked[0]
    assert ttl == 2 * HOUR


async def test_each_renewal_is_for_a_new_key_and_the_held_svid_vouches_for_it(world: World) -> None:
    await world.start()
    first = world.held
    await world.run_for(HOUR)
    (_, _, _, vouching) = world.ca.asked[1]
    assert vouching is first
    assert not same_public_key(world.held.key.public_key(), first.key.public_key())
    assert same_public_key(world.held.key.public_key(), world.held.svid.leaf.public_key())  # type: ignore[arg-type]


async def test_it_is_renewed_at_the_moment_that_was_drawn(world: World) -> None:
    await world.start()
    drawn = world.held.renew_at
    await world.run_for(drawn - world.clock() - SECOND)
    assert len(world.published) == 1
    await world.run_for(SECOND)
    assert len(world.published) == 2
    assert world.ca.asked[1][0] == drawn
    assert [each.previous for each in world.told(Renewed)] == [None, world.published[0]]


async def test_the_authoritys_advice_when_to_renew_is_followed(world: World) -> None:
    world.ca.advice = lambda now: now + 7 * MINUTE
    await world.start()
    assert world.renewer.next_at == world.clock() + 7 * MINUTE


async def test_a_day_of_renewals_never_leaves_proxies_with_an_expired_svid(world: World) -> None:
    def check() -> None:
        assert world.clock() < world.published[-1].svid.not_after

    await world.start()
    world.on_sleep = check
    await world.run_for(24 * HOUR)
    assert 36 < len(world.published) < 50


async def test_a_renewal_can_be_asked_for(world: World) -> None:
    await world.start()
    world.renewer.hurry(ID)
    await world.run_until(lambda: len(world.published) == 2)
    assert len(world.ca.asked) == 2


async def test_a_renewal_that_is_asked_for_while_it_goes_on_is_not_made_twice(world: World) -> None:
    sign = world.ca.sign

    async def sign_and_hurry(csr_pem: bytes, *, id: SpiffeID, ttl: timedelta | None, held: HeldSVID | None) -> object:
        world.renewer.hurry(ID)
        for _ in range(5):
            await asyncio.sleep(0)  # the sleeper has its turn
        return await sign(csr_pem, id=id, ttl=ttl, held=held)

    world.ca.sign = sign_and_hurry  # type: ignore[method-assign,assignment]
    await world.start()
    await world.run_for(MINUTE)
    assert len(world.published) == 1


# --- restarts


async def test_an_svid_from_before_a_restart_is_published_without_asking_anybody(world: World) -> None:
    await world.start()
    before = world.held
    world.ca.error = AWAY
    world.new_renewer()
    await world.renewer.add(Identity(ID))
    assert world.published == [before, before]
    assert len(world.ca.asked) == 1
    assert world.renewer.next_at == before.renew_at
    assert world.told(Loaded) == [Loaded(before, is_valid=True)]


async def test_an_svid_that_was_due_during_the_restart_is_published_and_renewed_at_once(world: World) -> None:
    await world.start()
    before = world.held
    world.clock.advance(HOUR * 0.8)
    world.new_renewer()
    await world.start()
    assert world.published[1] is before
    assert len(world.published) == 3


async def test_an_expired_svid_from_before_a_restart_is_not_published_but_replaced(world: World) -> None:
    await world.start()
    before = world.held
    world.clock.advance(2 * HOUR)
    world.new_renewer()
    await world.start()
    assert [each is before for each in world.published] == [True, False]
    assert world.told(Loaded) == [Loaded(before, is_valid=False)]


# --- the authority is away


async def test_while_the_authority_is_away_the_svid_stays_and_attempts_go_on_until_it_is_back(world: World) -> None:
    await world.start()
    before = world.held
    world.ca.error = AWAY
    await world.run_for(HOUR * 0.9)
    failures = world.told(RenewalFailed)
    assert world.held is before
    assert world.published == [before]
    assert [each.failures for each in failures] == list(range(1, len(failures) + 1))
    assert len(failures) > 5
    world.ca.error = None
    await world.run_until(lambda: len(world.published) == 2)
    assert world.clock() < before.svid.not_after


async def test_the_first_failure_after_a_success_counts_as_the_first(world: World) -> None:
    await world.start()
    for _ in range(2):
        world.ca.error = AWAY
        before = len(world.told(RenewalFailed))
        await world.run_until(lambda before=before: len(world.told(RenewalFailed)) > before)  # type: ignore[misc]
        world.ca.error = None
        done = len(world.published)
        await world.run_until(lambda done=done: len(world.published) > done)  # type: ignore[misc]
    assert [each.failures for each in world.told(RenewalFailed)] == [1, 1]


async def test_failures_grow_louder_as_life_runs_out_and_attempts_go_on_after_the_end(world: World) -> None:
    await world.start()
    world.ca.error = AWAY
    await world.run_for(2 * HOUR)
    told = [each.urgency for each in world.told(RenewalFailed)]
    assert told == sorted(told, key=list(Urgency).index)
    assert set(told) == set(Urgency)
    assert world.published[-1] is world.held
    moments = [when for when, *_ in world.ca.asked[1:]]
    gaps = {late: late - early for early, late in itertools.pairwise(moments)}
    end = world.held.svid.not_after
    assert max(gaps.values()) <= 5 * MINUTE
    assert min(gaps.values()) >= 0.5 * SECOND
    assert max(gap for moment, gap in gaps.items() if moment > end) <= 30 * SECOND
    assert len([moment for moment in moments if end - 5 * MINUTE <= moment < end]) > 10
    world.ca.error = None
    await world.run_for(30 * SECOND)
    assert len(world.published) == 2


async def test_a_refusal_is_tried_again_too(world: World) -> None:
    """A token file can be replaced, a policy can be changed."""
    world.ca.error = PermissionDenied("not you")
    await world.start()
    assert world.published == []
    world.ca.error = None
    await world.run_for(5 * SECOND)
    assert len(world.published) == 1


async def test_each_identity_fails_on_its_own(world: World) -> None:
    other = SpiffeID.parse("spiffe://example.org/other")
    sign = world.ca.sign

    async def sign_only_one(csr_pem: bytes, *, id: SpiffeID, ttl: timedelta | None, held: HeldSVID | None) -> object:
        if id == other:
            raise AWAY
        return await sign(csr_pem, id=id, ttl=ttl, held=held)

    world.ca.sign = sign_only_one  # type: ignore[method-assign,assignment]
    await world.renewer.add(Identity(other))
    await world.renewer.add(Identity(ID))
    await world.run_for(2 * HOUR)
    assert {each.svid.id for each in world.published} == {ID}
    assert {each.id for each in world.told(RenewalFailed)} == {other}
    assert world.renewer.held(other) is None


# --- the clock


async def test_no_sleep_is_longer_than_a_jump_of_the_clock_may_stay_unnoticed(world: World) -> None:
    await world.start()
    await world.run_for(2 * HOUR)
    assert max(world.sleeps) == LONGEST_SLEEP


async def test_a_clock_that_jumps_ahead_leads_to_a_renewal_after_the_next_sleep(world: World) -> None:
    """As after a suspended machine wakes up."""
    await world.start()
    await world.run_for(MINUTE)
    world.clock.advance(40 * MINUTE)
    await world.run_for(LONGEST_SLEEP)
    assert len(world.published) == 2


async def test_an_svid_that_expired_during_a_suspend_is_replaced(world: World) -> None:
    await world.start()
    world.clock.advance(100 * HOUR)
    await world.run_for(LONGEST_SLEEP)
    assert len(world.published) == 2
    assert world.held.svid.not_after > world.clock()


async def test_a_clock_that_is_set_back_does_not_postpone_the_next_attempt(world: World) -> None:
    await world.start()
    world.ca.error = AWAY
    await world.run_until(lambda: len(world.told(RenewalFailed)) == 3)
    asked = len(world.ca.asked)
    world.clock.advance(-10 * MINUTE)
    await world.run_until(lambda: len(world.ca.asked) > asked)
    assert sum(world.sleeps[-1:], timedelta()) <= LONGEST_SLEEP
    assert world.ca.asked[-1][0] <= world.ca.asked[-2][0] - 9 * MINUTE


async def test_a_clock_that_is_set_back_does_not_renew_what_did_not_fail(world: World) -> None:
    await world.start()
    world.clock.advance(-MINUTE)
    await world.run_for(5 * MINUTE)
    assert len(world.ca.asked) == 1


async def test_a_pause_ends_when_it_is_over_or_woken() -> None:
    wake = asyncio.Event()
    await pause(timedelta(milliseconds=1), wake)
    wake.set()
    async with asyncio.timeout(5):
        await pause(HOUR, wake)


# --- the disk


async def test_what_cannot_be_saved_is_not_published_while_the_old_one_lasts(world: World) -> None:
    await world.start()
    before = world.held
    world.disk.error = DISK_FULL
    await world.run_for(HOUR * 0.85)
    assert world.published == [before]
    assert len(world.ca.asked) == 2, "the authority is not asked again for what is only not saved"
    assert {each.is_published for each in world.told(NotSaved)} == {False}
    world.disk.error = None
    await world.run_until(lambda: len(world.published) == 2)
    assert len(world.ca.asked) == 2
    assert world.disk.files[ID] is world.held


async def test_what_cannot_be_saved_is_published_before_the_old_one_ends(world: World) -> None:
    await world.start()
    before = world.held
    world.disk.error = DISK_FULL
    await world.run_until(lambda: len(world.published) == 2)
    assert before.svid.not_after - HOUR * 0.1 <= world.clock() < before.svid.not_after
    assert world.told(NotSaved)[-1].is_published
    await world.run_for(24 * HOUR)
    assert world.clock() < world.held.svid.not_after, "renewals go on without a disk"
    world.disk.error = None
    await world.run_until(lambda: ID in world.disk.files and world.disk.files[ID] is world.held)


async def test_a_first_svid_that_cannot_be_saved_is_published_and_saved_later(world: World) -> None:
    """A one-time token is used up by then: there is no second chance to get it."""
    world.disk.error = DISK_FULL
    await world.start()
    assert len(world.published) == 1
    assert world.disk.files == {}
    world.disk.error = None
    await world.run_until(lambda: bool(world.disk.files))
    assert world.disk.files[ID] is world.published[0]
    assert len(world.published) == 1
    assert len(world.ca.asked) == 1


async def test_an_unsaved_svid_that_is_due_is_renewed_by_itself(world: World) -> None:
    world.disk.error = DISK_FULL
    await world.start()
    unsaved = world.held
    await world.run_until(lambda: len(world.ca.asked) == 2)
    assert world.ca.asked[1][3] is unsaved
    assert world.ca.asked[1][0] >= unsaved.renew_at


async def test_what_cannot_be_read_at_all_is_told_at_the_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_id: SpiffeID) -> None:
        raise Unavailable("cannot read")

    monkeypatch.setattr(world.disk, "load", load)
    with pytest.raises(Unavailable):
        await world.renewer.add(Identity(ID))
