"""What comes next: by moments, and of what is due by ends."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.spiffe import SpiffeID
from citadel_py.rotator.queue import RenewalQueue
from tests.store.things import NOW

IDS = [SpiffeID.parse(f"spiffe://example.org/{number}") for number in range(5)]


def at(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


@pytest.fixture
def queue() -> RenewalQueue:
    return RenewalQueue()


def test_an_empty_queue_has_nothing_due_and_no_next_moment(queue: RenewalQueue) -> None:
    assert queue.pop_due(at(0)) is None
    assert queue.next_at is None


def test_what_has_been_due_longest_comes_first(queue: RenewalQueue) -> None:
    for id, minutes in zip(IDS, (3, 1, 2), strict=False):
        queue.push(id, at(minutes))
    assert [queue.pop_due(at(9)) for _ in range(4)] == [IDS[1], IDS[2], IDS[0], None]


def test_what_is_not_due_stays(queue: RenewalQueue) -> None:
    queue.push(IDS[0], at(1))
    assert queue.pop_due(at(0.99)) is None
    assert queue.pop_due(at(1)) == IDS[0]


@pytest.mark.parametrize("later", [0.5, 2.0])
def test_an_identity_has_one_moment_the_last_that_was_set(queue: RenewalQueue, later: float) -> None:
    queue.push(IDS[0], at(1))
    queue.push(IDS[0], at(later))
    assert queue.next_at == at(later)
    assert queue.pop_due(at(9)) == IDS[0]
    assert queue.pop_due(at(9)) is None


def test_equal_moments_come_in_the_order_in_which_they_were_set(queue: RenewalQueue) -> None:
    for id in reversed(IDS):
        queue.push(id, at(1))
    assert [queue.pop_due(at(1)) for _ in IDS] == IDS[::-1]


def test_setting_moments_again_and_again_does_not_make_it_grow(queue: RenewalQueue) -> None:
    for number in range(10_000):
        queue.push(IDS[number % 5], at(number))
    assert len(queue) == 5
    assert len(vars(queue)["_by_moment"]) + len(vars(queue)["_due"]) < 200


def test_of_what_is_due_the_nearest_end_comes_first(queue: RenewalQueue) -> None:
    for id, due, end in ((IDS[0], 1, 90), (IDS[1], 3, 20), (IDS[2], 2, 50), (IDS[3], 8, 10)):
        queue.push(id, at(due), at(end))
    assert [queue.pop_due(at(5)) for _ in range(4)] == [IDS[1], IDS[2], IDS[0], None]
    assert queue.pop_due(at(8)) == IDS[3]


def test_what_is_due_and_put_off_is_no_longer_due(queue: RenewalQueue) -> None:
    queue.push(IDS[0], at(1))
    queue.push(IDS[1], at(1))
    assert queue.pop_due(at(1)) == IDS[0]
    queue.push(IDS[1], at(5))
    assert queue.pop_due(at(2)) is None
    assert queue.next_at == at(5)


def test_what_was_due_once_stays_so_when_the_clock_is_set_back(queue: RenewalQueue) -> None:
    for id in IDS[:2]:
        queue.push(id, at(5))
    assert queue.pop_due(at(5)) == IDS[0]
    assert queue.pop_due(at(0)) == IDS[1]


OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(IDS), st.integers(0, 20), st.one_of(st.none(), st.integers(0, 40))), st.integers(0, 20)
)


@given(st.lists(OPERATIONS, max_size=60))
def test_it_behaves_like_two_dictionaries_that_are_searched(
    operations: list[tuple[SpiffeID, int, int | None] | int],
) -> None:
    queue, waiting, due = RenewalQueue(), dict[SpiffeID, tuple[int, int]](), dict[SpiffeID, int]()
    for operation in operations:
        if isinstance(operation, tuple):
            id, minutes, end = operation
            queue.push(id, at(minutes), None if end is None else at(end))
            due.pop(id, None)
            waiting[id] = (minutes, minutes if end is None else end)
        else:
            popped = queue.pop_due(at(operation))
            due |= {id: end for id, (minutes, end) in waiting.items() if minutes <= operation}
            waiting = {id: moments for id, moments in waiting.items() if id not in due}
            assert (popped is None) == (not due)
            assert popped is None or min(due.values()) == due.pop(popped)
        assert len(queue) == len(waiting) + len(due)
        if not due:
            assert queue.next_at == (at(min(minutes for minutes, _ in waiting.values())) if waiting else None)
        else:
            assert queue.next_at is not None
