"""Pure decisions about SVIDs in hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from citadel_py.core.ports import HeldSVID, SignedReply
from citadel_py.core.renewal import RenewalPolicy
from citadel_py.rotator.judgement import Urgency, is_valid, may_wait_for_disk, renewal_moment, urgency
from tests.store.things import NOW, new_held, new_pki

LIFE = timedelta(hours=1)
START = NOW.replace(microsecond=0)


@pytest.fixture(scope="module")
def held() -> HeldSVID:
    return replace(new_held(new_pki(), ttl=LIFE), issued_at=START)


def after(part: float) -> datetime:
    return START + LIFE * part


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (0.0, Urgency.CALM),
        (0.75, Urgency.CALM),
        (0.751, Urgency.PRESSING),
        (0.9999, Urgency.PRESSING),
        (1.0, Urgency.EXPIRED),
        (2.0, Urgency.EXPIRED),
    ],
)
def test_it_is_more_pressing_as_life_runs_out(held: HeldSVID, part: float, expected: Urgency) -> None:
    assert urgency(held, after(part)) is expected


def test_having_none_at_all_is_as_bad_as_an_expired_one() -> None:
    assert urgency(None, NOW) is Urgency.EXPIRED


def test_an_svid_is_valid_from_its_beginning_until_before_its_end(held: HeldSVID) -> None:
    begin, end = held.svid.not_before, held.svid.not_after
    second = timedelta(seconds=1)
    assert [is_valid(held, moment) for moment in (begin - second, begin, end - second, end)] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.999])
def test_without_advice_the_moment_is_one_draw_from_the_window(held: HeldSVID, uniform: float) -> None:
    policy = RenewalPolicy(0.5, 0.66)
    moment = renewal_moment(SignedReply(held.svid, held.bundle), policy, now=START, uniform=uniform)
    assert moment == policy.renew_at(START, held.svid.not_after, uniform)


@pytest.mark.parametrize("part", [0.001, 0.2, 0.9])
def test_advice_within_reason_is_taken(held: HeldSVID, part: float) -> None:
    reply = SignedReply(held.svid, held.bundle, after(part))
    assert renewal_moment(reply, RenewalPolicy(), now=START, uniform=0.5) == after(part)


@pytest.mark.parametrize("part", [-1.0, 0.0, 0.901, 1.0, 5.0])
def test_advice_beyond_reason_is_not_taken(held: HeldSVID, part: float) -> None:
    advised = SignedReply(held.svid, held.bundle, after(part))
    plain = SignedReply(held.svid, held.bundle)
    drawn = renewal_moment(plain, RenewalPolicy(), now=START, uniform=0.5)
    assert renewal_moment(advised, RenewalPolicy(), now=START, uniform=0.5) == drawn


def test_a_life_that_is_almost_over_when_it_begins_does_not_make_a_hot_loop(held: HeldSVID) -> None:
    now = held.svid.not_after - timedelta(milliseconds=10)
    moment = renewal_moment(SignedReply(held.svid, held.bundle), RenewalPolicy(), now=now, uniform=0.5)
    assert moment == now + timedelta(seconds=1)


@pytest.mark.parametrize(("part", "expected"), [(0.5, True), (0.9, True), (0.91, False), (1.0, False)])
def test_a_new_one_waits_for_the_disk_while_the_old_one_lasts(held: HeldSVID, part: float, expected: bool) -> None:  # noqa: FBT001 - a column
    assert may_wait_for_disk(held, after(part)) is expected


def test_a_first_one_does_not_wait_for_the_disk() -> None:
    assert not may_wait_for_disk(None, NOW)
