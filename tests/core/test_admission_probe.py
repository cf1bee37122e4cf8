"""The service's own probe in the queue: before everybody, and with nobody's share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from citadel_py.core.admission import Admission, AdmissionLimits, Ask, Peer, Priority
from citadel_py.core.rates import Rate

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
HOME = Peer("ipv4:127.0.0.1:1", "127.0.0.1")


def ask(number: int, priority: Priority) -> Ask:
    return Ask(f"caller {number}", f"spiffe://example.org/{number}", HOME, priority)


def test_the_probe_has_its_turn_before_everybody_and_a_place_in_a_full_queue() -> None:
    admission = Admission(AdmissionLimits(places=1, waiting=2))
    first, last = (admission.join(ask(number, Priority.FIRST_ISSUE), NOW) for number in (1, 2))

    probe = admission.join(ask(0, Priority.PROBE), NOW)

    turn = admission.turn(NOW)
    assert (turn.admitted, turn.refused) == (probe, (last,))
    admission.leave(probe, counts=True)
    assert admission.turn(NOW).admitted is first


def test_no_share_is_for_the_probe() -> None:
    once = Rate(1, timedelta(hours=1))
    admission = Admission(AdmissionLimits(identity=once, caller=once, same_at_once=1))
    tickets = [admission.join(ask(0, Priority.PROBE), NOW) for _ in range(3)]
    assert [admission.turn(NOW).admitted for _ in tickets] == tickets
    for ticket in tickets:
        admission.leave(ticket, counts=True)
    assert admission.in_works == 0
