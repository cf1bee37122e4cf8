"""Bounded work: nobody gets more than a limit, nobody waits for ever, and clocks may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.admission import (
    MOST_DELAY_S,
    SHARE,
    Admission,
    AdmissionLimits,
    Ask,
    Peer,
    Priority,
    Strangers,
    Ticket,
    priority_of,
)
from citadel_py.core.errors import CitadelError, LimitReached, Unavailable
from citadel_py.core.profile import Validity
from citadel_py.core.rates import Rate

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
MANY = Rate(1_000_000, SECOND)
PROBE, FIRST, NEAR, EARLY = Priority
# Each test narrows what it is about.
WIDE = AdmissionLimits(overall=MANY, caller=MANY, identity=MANY, places=1000, waiting=1000, same_at_once=1000)


def ask(caller: str = "cart", *, number: int = 0, priority: Priority = FIRST, **changes: object) -> Ask:
    """By default each number is a connection and an address of its own."""
    peer = Peer(f"10.0.0.{number}:999", f"10.0.0.{number}")
    return replace(Ask(caller, f"spiffe://example.org/{caller}", peer, priority), **changes)  # type: ignore[arg-type]


def refusal_of(act: Callable[[], object]) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        act()
    return caught.value


def admitted(admission: Admission, now: datetime = NOW) -> list[Ticket]:
    """All whose turn it is now."""
    found = []
    while ticket := admission.turn(now).admitted:
        found.append(ticket)
    return found


def serve(admission: Admission, one: Ask, now: datetime = NOW) -> bool:
    """Whether a request is let in; it is done at once."""
    try:
        ticket = admission.join(one, now)
    except CitadelError:
        return False
    assert admitted(admission, now) == [ticket]
    admission.leave(ticket, counts=True)
    return True


# --- who comes first


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (timedelta(0), EARLY),
        (11 * HOUR, EARLY),
        (12 * HOUR, NEAR),
        (23 * HOUR, NEAR),
        (25 * HOUR, NEAR),  # it has ended, and is no reason to be the last one
    ],
)
def test_a_renewal_is_early_while_more_than_half_of_the_life_is_left(age: timedelta, expected: Priority) -> None:
    assert priority_of(Validity(NOW - age, NOW - age + 24 * HOUR), NOW) is expected


def test_who_shows_no_certificate_has_none() -> None:
    assert priority_of(None, NOW) is FIRST


def test_first_issue_goes_before_near_expiry_before_early_renewal() -> None:
    admission = Admission(WIDE)
    for number, priority in enumerate((EARLY, NEAR, FIRST, EARLY, NEAR, FIRST)):
        admission.join(ask(number=number, priority=priority), NOW)

    assert [ticket.ask.peer.address for ticket in admitted(admission)] == [
        f"10.0.0.{number}" for number in (2, 5, 1, 4, 0, 3)
    ]


def test_nobody_waits_for_ever_behind_those_who_matter_more() -> None:
    admission = Admission(replace(WIDE, places=1))
    patient = admission.join(ask(priority=EARLY), NOW)
    for turns in range(1, 3 * SHARE):
        admission.join(ask(number=turns), NOW)
        ticket = admitted(admission)[0]
        if ticket is patient:
            assert turns <= SHARE
            return
        admission.leave(ticket, counts=True)
    pytest.fail("it starved")


@given(st.lists(st.sampled_from(list(Priority)), max_size=100))
def test_everybody_who_waits_is_served_once(priorities: list[Priority]) -> None:
    admission = Admission(WIDE)
    tickets = [admission.join(ask(number=n, priority=each), NOW) for n, each in enumerate(priorities)]

    served = admitted(admission)

    assert sorted(ticket.number for ticket in served) == [ticket.number for ticket in tickets]
    assert (admission.waiting, admission.in_works) == (0, len(tickets))


# --- a bounded queue


def test_no_more_are_in_the_works_than_there_are_places() -> None:
    admission = Admission(replace(WIDE, places=2))
    for number in range(5):
        admission.join(ask(number=number), NOW)
    first = admitted(admission)
    assert (len(first), admission.waiting) == (2, 3)

    admission.leave(first[0], counts=True)

    assert len(admitted(admission)) == 1


def test_a_full_queue_says_when_to_come_back_and_not_to_all_the_same() -> None:
    admission = Admission(replace(WIDE, places=1, waiting=1))
    admission.join(ask(), NOW)

    refusals = [refusal_of(lambda n=n: admission.join(ask(number=n), NOW)) for n in range(1, 50)]  # type: ignore[misc]

    assert {(type(each), each.rule) for each in refusals} == {(Unavailable, "queue_full")}
    delays = [each.retry_after for each in refusals if each.retry_after]
    assert len(set(delays)) == len(delays) == 49
    assert delays == sorted(delays)


def test_nobody_is_sent_away_for_longer_than_a_minute() -> None:
    admission = Admission(replace(WIDE, places=1, waiting=1))
    admission.join(ask(), NOW)
    delays = [refusal_of(lambda: admission.join(ask(number=1), NOW)).retry_after for _ in range(10_000)]
    assert max(each for each in delays if each) <= timedelta(seconds=MOST_DELAY_S)


def test_in_a_full_queue_the_latest_of_the_least_pressing_makes_room() -> None:
    admission = Admission(replace(WIDE, places=1, waiting=3))
    tickets = [admission.join(ask(number=n, priority=each), NOW) for n, each in enumerate((EARLY, EARLY, NEAR))]

    pressing = admission.join(ask(number=9), NOW)

    turn = admission.turn(NOW)
    assert (turn.admitted, turn.refused) == (pressing, (tickets[1],))
    assert tickets[1].refusal is not None
    assert tickets[1].refusal.rule == "queue_full"


def test_who_matters_no_more_than_those_who_wait_displaces_nobody() -> None:
    admission = Admission(replace(WIDE, waiting=1))
    admission.join(ask(priority=NEAR), NOW)
    for priority in (NEAR, EARLY):
        assert refusal_of(lambda p=priority: admission.join(ask(priority=p), NOW)).rule == "queue_full"  # type: ignore[misc]


def test_who_waited_past_its_deadline_is_dropped_before_any_work() -> None:
    admission = Admission(WIDE)
    late = admission.join(ask(patience=SECOND), NOW)
    punctual = admission.join(ask(number=1, patience=3 * SECOND), NOW)

    turn = admission.turn(NOW + 2 * SECOND)

    assert (turn.admitted, turn.refused) == (punctual, (late,))
    assert late.refusal is not None
    assert late.refusal.rule == "waited_too_long"


def test_who_names_no_deadline_waits_no_longer_than_the_service_has_patience() -> None:
    admission = Admission(replace(WIDE, patience=SECOND))
    tickets = [admission.join(ask(patience=patience), NOW) for patience in (None, HOUR)]
    assert admission.turn(NOW + SECOND).refused == tuple(tickets)


def test_those_who_waited_in_vain_make_room_in_a_full_queue() -> None:
    admission = Admission(replace(WIDE, waiting=1))
    admission.join(ask(patience=SECOND), NOW)
    late = NOW + 2 * SECOND
    assert admission.join(ask(number=1), late) in admitted(admission, late)


def test_who_leaves_while_it_waits_is_not_served() -> None:
    admission = Admission(replace(WIDE, places=1))
    waiting = admission.join(ask(), NOW)
    admission.leave(waiting, counts=False)
    assert (admission.waiting, admission.in_works, admitted(admission)) == (0, 0, [])


def test_beyond_the_overall_pace_requests_wait() -> None:
    admission = Admission(replace(WIDE, overall=Rate(10, SECOND)))
    for number in range(25):
        admission.join(ask(number=number), NOW)
    assert len(admitted(admission)) == 10

    again_in_s = admission.turn(NOW).again_in_s

    assert again_in_s == pytest.approx(0.1, abs=0.001)
    assert len(admitted(admission, NOW + SECOND)) == 10
    assert len(admitted(admission, NOW + 2 * SECOND)) == 5


# --- the share of one caller


def test_one_identity_from_one_address_gets_so_many_in_a_window() -> None:
    admission = Admission(replace(WIDE, identity=Rate(3, HOUR)))
    assert [serve(admission, ask()) for _ in range(5)] == [True, True, True, False, False]

    error = refusal_of(lambda: admission.join(ask(), NOW))

    assert isinstance(error, LimitReached)
    assert error.rule == "too_many_certificates"
    assert error.retry_after is not None
    assert serve(admission, ask(), NOW + error.retry_after)


@pytest.mark.parametrize(
    "other",
    [ask(number=1), ask("pay"), ask(id="spiffe://example.org/of-the-same-caller")],
    ids=["another address", "another caller", "another identity"],
)
def test_what_one_uses_up_is_there_for_others(other: Ask) -> None:
    admission = Admission(replace(WIDE, identity=Rate(1, HOUR)))
    assert [serve(admission, ask()), serve(admission, ask()), serve(admission, other)] == [True, False, True]


def test_naming_the_identity_of_another_uses_up_nothing_of_its_share() -> None:
    admission = Admission(replace(WIDE, identity=Rate(1, HOUR), caller=Rate(2, HOUR)))
    victim = ask("pay")
    for _ in range(9):
        serve(admission, ask("thief", id=victim.id))
    assert serve(admission, victim)


def test_all_that_one_caller_is_given_is_bounded() -> None:
    admission = Admission(replace(WIDE, caller=Rate(5, HOUR)))
    served = [serve(admission, ask(number=n, id=f"spiffe://example.org/{n}")) for n in range(9)]
    assert served == [True] * 5 + [False] * 4


def test_one_identity_on_one_connection_is_certified_one_at_a_time() -> None:
    admission = Admission(replace(WIDE, same_at_once=1))
    ticket = admission.join(ask(), NOW)
    admitted(admission)
    error = refusal_of(lambda: admission.join(ask(), NOW))
    assert (type(error), error.rule) == (LimitReached, "duplicate_request")
    admission.join(ask(number=1), NOW)  # a workload of the same identity, elsewhere

    admission.leave(ticket, counts=True)

    admission.join(ask(), NOW)


def test_what_did_not_come_about_by_no_fault_of_the_caller_does_not_count() -> None:
    admission = Admission(replace(WIDE, identity=Rate(1, HOUR), caller=Rate(1, HOUR)))
    for _ in range(5):
        admission.leave(admission.join(ask(), NOW), counts=False)
    assert [serve(admission, ask()), serve(admission, ask())] == [True, False]


@given(st.lists(st.floats(0, 30), min_size=1, max_size=200), st.integers(1, 10))
def test_in_no_span_of_time_is_the_bound_exceeded(pauses: list[float], count: int) -> None:
    window = timedelta(seconds=10)
    admission = Admission(replace(WIDE, identity=Rate(count, window)))
    at, served = 0.0, []
    for pause in pauses:
        at += pause
        if serve(admission, ask(), NOW + timedelta(seconds=at)):
            served.append(at)

    for first in range(len(served)):
        for last in range(first, len(served)):
            assert last - first + 1 <= count + count * (served[last] - served[first]) / 10 + 0.001


@given(st.lists(st.floats(-1e6, 1e6), max_size=30), st.integers(1, 5))
def test_whatever_the_clock_does_who_waits_as_it_is_told_is_served(jumps: list[float], count: int) -> None:
    """The clock goes on after the last jump, and so does everybody."""
    admission = Admission(replace(WIDE, identity=Rate(count, timedelta(seconds=10))))
    now = NOW
    for jump in jumps:
        now += timedelta(seconds=jump)
        serve(admission, ask(), now)
    while serve(admission, ask(), now):
        pass

    told = refusal_of(lambda: admission.join(ask(), now)).retry_after

    assert told is not None
    assert told <= timedelta(seconds=10)
    assert serve(admission, ask(), now + told + SECOND / 1000)


def test_a_clock_that_is_set_back_keeps_nobody_waiting_in_the_queue() -> None:
    admission = Admission(replace(WIDE, overall=Rate(1, SECOND)))
    admission.join(ask(), NOW)
    admission.join(ask(number=1), NOW)
    assert len(admitted(admission, NOW)) == 1
    back = NOW - HOUR
    assert admitted(admission, back) == []
    assert len(admitted(admission, back + SECOND)) == 1


@given(st.floats(0, 100), st.floats(0, 100))
def test_who_is_served_at_a_moment_would_be_served_at_every_later_one(earlier: float, later: float) -> None:
    def is_served(after_s: float) -> bool:
        admission = Admission(replace(WIDE, identity=Rate(3, timedelta(seconds=30))))
        for _ in range(3):
            serve(admission, ask())
        return serve(admission, ask(), NOW + timedelta(seconds=after_s))

    first, second = sorted((earlier, later))
    assert is_served(second) or not is_served(first)


# --- memory


def test_no_more_callers_are_kept_than_there_is_room_for_and_who_is_forgotten_starts_afresh() -> None:
    admission = Admission(replace(WIDE, identity=Rate(1, HOUR), kept=3))
    for number in range(4):
        assert serve(admission, ask(number=number))

    assert [serve(admission, ask(number=number)) for number in (3, 2, 1)] == [False] * 3
    assert serve(admission, ask(number=0))


def test_who_forgets_callers_still_bounds_all_of_them() -> None:
    admission = Admission(replace(WIDE, overall=Rate(50, HOUR), identity=Rate(1, HOUR), kept=3))
    for number in range(500):
        admission.join(ask(number=number), NOW)
    assert len(admitted(admission)) == 50


# --- callers that nobody knows

FAILING = replace(WIDE, connection_failures=Rate(3, timedelta(seconds=30)), address_failures=Rate(6, HOUR))


def failures(strangers: Strangers, peer: Peer, tries: int = 100) -> int:
    """How many of many tries were heard, all of them in vain."""
    for heard in range(tries):
        try:
            strangers.check(peer, NOW)
        except LimitReached:
            return heard
        strangers.failed(peer, NOW)
    return tries


def test_a_connection_that_fails_again_and_again_is_not_heard_for_a_while() -> None:
    strangers, peer = Strangers(FAILING), Peer("one", "10.0.0.1")
    assert failures(strangers, peer) == 3
    error = refusal_of(lambda: strangers.check(peer, NOW))
    assert error.rule == "too_many_failures"
    assert error.retry_after is not None
    strangers.check(peer, NOW + error.retry_after)


def test_its_neighbours_behind_the_same_address_are_heard() -> None:
    strangers = Strangers(FAILING)
    failures(strangers, Peer("one", "10.0.0.1"))
    strangers.check(Peer("two", "10.0.0.1"), NOW)


def test_new_connections_do_not_help_an_address_that_fails_again_and_again() -> None:
    strangers = Strangers(FAILING)
    assert sum(failures(strangers, Peer(f"connection {n}", "10.0.0.1")) for n in range(50)) == 6
    strangers.check(Peer("elsewhere", "10.0.0.2"), NOW)
