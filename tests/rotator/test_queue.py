"""The heap of moments."""

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
    assert len(vars(queue)["_heap"]) < 200


@given(st.lists(st.one_of(st.tuples(st.sampled_from(IDS), st.integers(0, 20)), st.integers(0, 20)), max_size=60))
def test_it_behaves_like_a_dictionary_that_is_searched(operations: list[tuple[SpiffeID, int] | int]) -> None:
    queue, model = RenewalQueue(), dict[SpiffeID, int]()
    for operation in operations:
        if isinstance(operation, tuple):
            id, minutes = operation
            queue.push(id, at(minutes))
            model[id] = minutes
        else:
            popped = queue.pop_due(at(operation))
            due = [minutes for minutes in model.values() if minutes <= operation]
            assert (popped is None) == (not due)
            assert popped is None or model.pop(popped) == min(due)
        assert len(queue) == len(model)
        assert queue.next_at == (at(min(model.values())) if model else None)
