"""What several workers agree on: only what all of them prepared alike."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from citadel_py.app.worker_agreement import Prepared, agreement
from citadel_py.app.worker_slot import FIRST_WAIT, LONGEST_WAIT, wait_before
from citadel_py.core.errors import CitadelError, InvalidKey

ERROR = InvalidKey("no key")
answers = st.lists(
    st.dictionaries(st.sampled_from(["authority", "policy"]), st.sampled_from(["one", "two", ERROR])), max_size=4
)


def test_what_all_prepared_alike_is_agreed() -> None:
    found = agreement([{"authority": "a", "policy": "p"}, {"policy": "p", "authority": "a"}])
    assert (found.digests, found.problems) == ({"authority": "a", "policy": "p"}, {})


def test_one_part_that_is_bad_does_not_hold_up_the_other() -> None:
    found = agreement([{"authority": ERROR, "policy": "p"}, {"authority": "a", "policy": "p"}])
    assert found.digests == {"policy": "p"}
    assert found.problems == {"authority": ERROR}


def test_workers_that_read_different_files_agree_on_nothing() -> None:
    found = agreement([{"policy": "p"}, {"policy": "q"}])
    assert found.digests == {}
    assert found.problems["policy"].rule == "worker_disagrees"


@given(answers)
def test_nothing_is_agreed_that_a_worker_prepared_differently(given: Sequence[Prepared]) -> None:
    found = agreement(given)
    for part, digest in found.digests.items():
        assert {answer[part] for answer in given if part in answer} == {digest}
    assert set(found.digests) | set(found.problems) == {part for answer in given for part in answer}
    assert not set(found.digests) & set(found.problems)
    assert all(isinstance(each, CitadelError) for each in found.problems.values())


@given(st.integers(min_value=1, max_value=10_000))
def test_who_dies_once_is_back_at_once_and_who_dies_always_waits_within_bounds(deaths: int) -> None:
    wait = wait_before(deaths)
    if deaths == 1:
        assert not wait
    else:
        assert FIRST_WAIT / 2 <= wait <= LONGEST_WAIT
