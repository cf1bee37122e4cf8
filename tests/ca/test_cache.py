"""The bounded cache."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from citadel_py.ca.cache import BoundedCache

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_an_entry_is_there_until_its_moment_and_not_at_it() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2)
    cache.put("a", 1, ends_at=NOW + SECOND)
    assert cache.get("a", now=NOW) == 1
    assert cache.get("a", now=NOW + SECOND) is None
    assert len(cache) == 0


def test_the_entry_that_was_used_least_recently_makes_room() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2)
    for name in "ab":
        cache.put(name, 1, ends_at=NOW + SECOND)
    cache.get("a", now=NOW)
    cache.put("c", 1, ends_at=NOW + SECOND)
    assert [cache.get(name, now=NOW) for name in "abc"] == [1, None, 1]


def test_many_entries_do_not_outgrow_the_bound() -> None:
    cache: BoundedCache[int, int] = BoundedCache(10)
    for number in range(1000):
        cache.put(number, number, ends_at=NOW + SECOND)
    assert len(cache) == 10
