"""The wall clock: jumps beside a clock that only goes on, and moments that were there before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.clock import SKEW, STEP, TOLD_FOR, ClockWatch

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


def watch(newest: datetime | None = None, *, is_trusted: bool = False) -> ClockWatch:
    """One that has looked at NOW, when the other clock said 100."""
    clock = ClockWatch(newest, unbearable=DAY, is_trusted=is_trusted)
    assert clock.look(NOW, 100.0) is None
    return clock


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1, 1)), max_size=50))
def test_a_clock_that_goes_on_and_is_slewed_is_fine(looks: list[tuple[float, float]]) -> None:
    clock, elapsed, slewed = watch(), 0.0, 0.0
    for pause, slew in looks:
        elapsed, slewed = elapsed + pause, slewed + slew
        wall = NOW + timedelta(seconds=elapsed + slewed)
        assert clock.look(wall, 100.0 + elapsed) is None
        assert (clock.problem, clock.doubt) == (None, None)


def test_a_jump_is_told_for_a_while_and_then_no_more() -> None:
    clock = watch()
    assert clock.look(NOW + HOUR, 101.0) == HOUR - SECOND
    told = [clock.doubt]
    clock.look(NOW + HOUR + TOLD_FOR, 101.0 + TOLD_FOR.total_seconds())
    assert [*told, clock.doubt] == ["it jumped forward by 59m59s", None]
    assert clock.problem is None


def test_a_small_correction_is_no_jump() -> None:
    assert watch().look(NOW + SECOND + STEP, 101.0) is None
    assert watch().look(NOW + SECOND - STEP, 101.0) is None


def test_a_clock_that_is_set_back_is_behind_until_it_has_caught_up() -> None:
    clock = watch()
    assert clock.look(NOW - HOUR, 100.0) == -HOUR
    assert clock.behind == HOUR
    assert clock.problem is None
    assert clock.doubt is not None
    assert clock.doubt.startswith("it says 2026-03-04T04:06:07Z, which is 1h before the newest moment")
    clock.look(NOW, 100.0 + HOUR.total_seconds())
    assert clock.behind == timedelta(0)


def test_a_clock_that_is_behind_the_ledger_by_a_certificates_life_is_a_problem() -> None:
    assert watch(NOW + DAY).problem is not None
    clock = watch(NOW + DAY - SECOND)
    assert clock.problem is None
    assert clock.doubt is not None


def test_a_replica_whose_clock_is_a_little_ahead_is_no_reason_to_doubt_ours() -> None:
    clock = watch(NOW + SKEW)
    assert (clock.problem, clock.doubt) == (None, None)


def test_a_clock_that_is_trusted_may_be_behind_everything_and_jumps_are_told_all_the_same() -> None:
    clock = watch(NOW + 100 * DAY, is_trusted=True)
    assert (clock.behind, clock.problem, clock.doubt) == (timedelta(0), None, None)
    clock.look(NOW - 2 * DAY, 100.0)
    assert (clock.problem, clock.doubt) == (None, "it jumped back by 2d")
