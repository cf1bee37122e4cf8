"""A full queue: no caller keeps it for itself, however many connections it has."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.admission import Admission, AdmissionLimits, Ask, Peer, Priority, Ticket
from citadel_py.core.errors import Unavailable

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
FULL = 8


class Queue:
    """One in which nobody gets a turn, so that it stays full."""

    def __init__(self) -> None:
        self.admission = Admission(AdmissionLimits(waiting=FULL))
        self.waiting: list[Ticket] = []

    def join(self, caller: str, priority: Priority = Priority.EARLY_RENEWAL) -> bool:
        """Whether there was room for it; who had to leave for it leaves."""
        peer = Peer(f"ipv4:192.0.2.1:{len(self.waiting)}", "192.0.2.1")
        try:
            self.waiting.append(self.admission.join(Ask(caller, f"spiffe://example.org/{caller}", peer, priority), NOW))
        except Unavailable:
            return False
        finally:
            self.waiting = [ticket for ticket in self.waiting if ticket.refusal is None]
        assert self.admission.waiting == len(self.waiting) <= FULL
        return True

    def shares(self) -> Counter[str]:
        return Counter(ticket.ask.caller for ticket in self.waiting)


def test_who_has_filled_the_queue_makes_room_for_others_and_not_for_itself() -> None:
    queue = Queue()
    assert [queue.join("greedy") for _ in range(FULL + 2)] == [True] * FULL + [False] * 2
    assert queue.join("modest")
    assert queue.shares() == {"greedy": FULL - 1, "modest": 1}
    assert not queue.join("greedy")


def test_the_last_and_least_pressing_of_the_greedy_one_has_to_leave() -> None:
    queue = Queue()
    for priority in (Priority.EARLY_RENEWAL, Priority.NEAR_EXPIRY, *[Priority.FIRST_ISSUE] * (FULL - 2)):
        queue.join("greedy", priority)
    first_issues = queue.waiting[2:]
    assert [queue.join("modest", Priority.EARLY_RENEWAL) for _ in range(2)] == [True, True]
    assert [ticket for ticket in queue.waiting if ticket.ask.caller == "greedy"] == first_issues


@given(st.text("abcd", max_size=100))
def test_whoever_is_refused_waits_with_as_many_as_anybody(callers: str) -> None:
    queue = Queue()
    for caller in callers:
        before = queue.shares()
        if not queue.join(caller):
            assert before[caller] + 1 >= max(before.values())
