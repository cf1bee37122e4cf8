from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.renewal import Backoff, RenewalPolicy

UNIFORM = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(uniform=UNIFORM, hours=st.integers(min_value=1, max_value=2160))
def test_every_draw_lies_inside_the_window(uniform: float, hours: int) -> None:
    start, life = datetime.fromisoformat("2026-03-04T05:06:07+00:00"), timedelta(hours=hours)
    when = RenewalPolicy(0.5, 0.66).renew_at(start, start + life, uniform)
    assert start + life * 0.5 <= when <= start + life * 0.66


def test_a_fleet_that_started_together_is_spread_over_the_whole_window(now: datetime) -> None:
    draws = [RenewalPolicy().renew_at(now, now + timedelta(hours=24), step / 100) for step in range(100)]
    assert len(set(draws)) == 100
    assert max(draws) - min(draws) > timedelta(hours=3)


@pytest.mark.parametrize(("earliest", "latest"), [(0, 0.5), (0.7, 0.6), (0.5, 1), (-1, 0.5)])
def test_a_window_that_cannot_work_is_refused(earliest: float, latest: float) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        RenewalPolicy(earliest, latest)
    assert caught.value.rule == "renewal_window"


@given(uniform=UNIFORM, failures=st.integers(min_value=1, max_value=10_000))
def test_retries_are_bounded_below_and_above_however_often_it_failed(uniform: float, failures: int) -> None:
    now = datetime.fromisoformat("2026-03-04T05:06:07+00:00")
    delay = Backoff().retry_at(now, failures, None, uniform) - now
    assert timedelta(seconds=0.5) <= delay <= timedelta(minutes=5)


def test_delays_grow_with_each_failure_up_to_the_maximum(now: datetime) -> None:
    delays = [(Backoff().retry_at(now, failures, None, 0.5) - now).total_seconds() for failures in range(1, 12)]
    assert delays == sorted(delays)
    assert delays[-1] == 225  # three quarters of five minutes


@given(
    uniform=UNIFORM, failures=st.integers(min_value=1, max_value=100), left=st.integers(min_value=10, max_value=86400)
)
def test_several_more_attempts_fit_before_expiry(uniform: float, failures: int, left: int) -> None:
    now = datetime.fromisoformat("2026-03-04T05:06:07+00:00")
    not_after = now + timedelta(seconds=left)
    assert Backoff().retry_at(now, failures, not_after, uniform) - now <= timedelta(seconds=max(left / 10, 0.5))
