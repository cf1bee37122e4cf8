"""Moments and durations as a person reads them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.cli.render import fields, in_words, relative, rfc3339
from citadel_py.core.duration import parse_duration
from tests.cli.support import NOW


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (timedelta(hours=11, minutes=52, seconds=9), "11h52m"),
        (timedelta(days=364, hours=23, minutes=59), "364d23h"),
        (timedelta(minutes=2, seconds=3), "2m3s"),
        (timedelta(seconds=59), "59s"),
        (timedelta(days=1), "1d"),
        (timedelta(days=1, minutes=5), "1d"),
        (timedelta(), "0s"),
    ],
)
def test_a_duration_has_at_most_two_units(duration: timedelta, words: str) -> None:
    assert in_words(duration) == words


@given(st.timedeltas(timedelta(), timedelta(days=10_000)))
def test_words_are_never_more_than_the_duration_and_close_to_it(duration: timedelta) -> None:
    told = parse_duration(in_words(duration))
    assert told <= duration < told + timedelta(hours=1)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "now"), (1, "in 1s"), (-1, "1s ago"), (3600, "in 1h"), (-86400, "1d ago")]
)
def test_a_moment_is_told_from_now(seconds: int, words: str) -> None:
    moment = NOW.replace(microsecond=0) + timedelta(seconds=seconds)
    assert relative(moment, NOW) == words


def test_a_moment_is_written_in_utc() -> None:
    assert rfc3339(NOW) == "2026-03-04T05:06:07Z"


def test_fields_stand_in_one_column_and_empty_ones_are_left_out() -> None:
    rows = [("a", "1"), ("long name", "2"), ("nothing", ""), ("many", ["3", "4"]), ("none", [])]
    assert fields(rows) == "  a          1\n  long name  2\n  many       3\n  many       4\n"
