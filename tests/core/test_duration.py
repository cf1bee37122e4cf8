from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.duration import InvalidDuration, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("30d", 2592000), ("1d2h3m4s", 93784), ("0s", 0), ("90m", 5400)]
)
def test_a_duration_is_the_sum_of_its_parts(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "1", "h", "1h1h", "30m1h", "-1h", "1.5h", "1 h", "1h\n", "1w", "1e3s", "٣s", "9999999999s"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidDuration):
        parse_duration(text)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=40000)))
def test_what_is_written_is_read_back_as_whole_seconds(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == timedelta(seconds=int(duration.total_seconds()))


def test_time_that_has_passed_is_shown_as_negative() -> None:
    assert format_duration(timedelta(hours=-3, minutes=-2)) == "-3h2m"
