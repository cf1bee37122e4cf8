"""The rules of one incremental stream, one by one."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any

from citadel_py.core.errors import BadInput
from citadel_py.sds.delta import DeltaPush, DeltaRequest, DeltaStream
from citadel_py.sds.encoding import Resource
from citadel_py.sds.holdings import Acknowledged, Rejected


def resource(name: str, version: str) -> Resource:
    return Resource(name, version, Any())


def having(**versions: str) -> dict[str, Resource]:
    return {name: resource(name, version) for name, version in versions.items()}


def pushed(stream: DeltaStream, available: dict[str, Resource]) -> DeltaPush:
    push = stream.next_push(available)
    assert push is not None
    return push


def contents(push: DeltaPush) -> dict[str, str]:
    return {each.name: each.version for each in push.resources}


def subscribe(*names: str, nonce: str = "") -> DeltaRequest:
    return DeltaRequest(subscribe=names, nonce=nonce)


def ack(push: DeltaPush) -> DeltaRequest:
    return DeltaRequest(nonce=push.nonce)


def nack(push: DeltaPush, error: str = "broken") -> DeltaRequest:
    return DeltaRequest(nonce=push.nonce, error=error)


def opened(available: dict[str, Resource], *names: str, **versions: str) -> DeltaStream:
    stream = DeltaStream()
    stream.receive(DeltaRequest(subscribe=names, initial_versions=versions), available)
    return stream


def acknowledged(available: dict[str, Resource], *names: str) -> DeltaStream:
    """A stream whose client has taken everything that is available."""
    stream = opened(available, *names)
    stream.receive(ack(pushed(stream, available)), available)
    return stream


def test_nothing_is_sent_before_the_first_request() -> None:
    assert DeltaStream().next_push(having(a="1")) is None


def test_the_first_request_is_answered_with_what_was_asked_for() -> None:
    available = having(a="1", b="2")
    push = pushed(opened(available, "a"), available)
    assert push == DeltaPush("1", (resource("a", "1"),))
    assert push.version == "1"


def test_an_acknowledgement_is_reported_and_answered_with_nothing() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    assert stream.receive(ack(pushed(stream, available)), available) == Acknowledged("1", ("a",))
    assert stream.next_push(available) is None


def test_only_what_changed_is_sent() -> None:
    stream = acknowledged(having(a="1", b="1"), "a", "b")
    assert contents(pushed(stream, having(a="1", b="2"))) == {"b": "2"}


def test_a_change_of_another_name_is_not_sent() -> None:
    stream = acknowledged(having(a="1", b="1"), "a")
    assert stream.next_push(having(a="1", b="2")) is None


def test_nothing_is_sent_while_an_answer_is_awaited_and_later_changes_go_out_as_one() -> None:
    stream = opened(having(a="1", b="1"), "a", "b")
    first = pushed(stream, having(a="1", b="1"))
    assert stream.next_push(having(a="2", b="1")) is None
    assert stream.next_push(having(a="3", b="2")) is None
    stream.receive(ack(first), having(a="3", b="2"))
    assert contents(pushed(stream, having(a="3", b="2"))) == {"a": "3", "b": "2"}


def test_a_subscription_in_mid_stream_without_a_nonce_is_answered_and_answers_nothing() -> None:
    available = having(a="1", b="1")
    stream = opened(available, "a")
    first = pushed(stream, available)
    assert stream.receive(subscribe("b"), available) is None
    assert stream.next_push(available) is None
    assert stream.receive(ack(first), available) == Acknowledged("1", ("a",))
    assert contents(pushed(stream, available)) == {"b": "1"}


def test_a_subscription_that_comes_with_an_answer_counts_as_both() -> None:
    available = having(a="1", b="1")
    stream = opened(available, "a")
    request = subscribe("b", nonce=pushed(stream, available).nonce)
    assert stream.receive(request, available) == Acknowledged("1", ("a",))
    assert contents(pushed(stream, available)) == {"b": "1"}


@pytest.mark.parametrize("nonce", ["0", "2", "other"])
def test_a_stale_nonce_answers_nothing_and_its_subscription_counts(nonce: str) -> None:
    """It is a difference: dropped, it would be lost for good."""
    available = having(a="1", b="1")
    stream = opened(available, "a")
    first = pushed(stream, available)
    assert stream.receive(DeltaRequest(subscribe=("b",), nonce=nonce, error="stale"), available) is None
    assert stream.next_push(available) is None
    stream.receive(ack(first), available)
    assert contents(pushed(stream, available)) == {"b": "1"}


def test_an_answer_that_comes_twice_counts_once() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    push = pushed(stream, available)
    stream.receive(ack(push), available)
    assert stream.receive(nack(push), available) is None
    assert stream.next_push(available) is None


def test_a_name_that_is_given_up_is_sent_no_more() -> None:
    stream = acknowledged(having(a="1", b="1"), "a", "b")
    stream.receive(DeltaRequest(unsubscribe=("b",)), having(a="1", b="1"))
    assert stream.names == ("a",)
    assert stream.next_push(having(a="1", b="2")) is None


def test_giving_up_a_name_that_was_never_wanted_changes_nothing() -> None:
    stream = acknowledged(having(a="1"), "a")
    stream.receive(DeltaRequest(unsubscribe=("nobody",)), having(a="1"))
    assert stream.names == ("a",)


def test_who_asks_again_for_what_it_has_gets_it_once_more() -> None:
    """It may have let go of it without saying so."""
    available = having(a="1", b="1")
    stream = acknowledged(available, "a", "b")
    stream.receive(subscribe("a"), available)
    again = pushed(stream, available)
    assert contents(again) == {"a": "1"}
    stream.receive(ack(again), available)
    assert stream.next_push(available) is None


def test_a_name_that_is_given_up_and_wanted_again_before_the_answer_is_sent_once_more() -> None:
    """The client may have dropped the response that was on its way."""
    available = having(a="1")
    stream = opened(available, "a")
    first = pushed(stream, available)
    stream.receive(DeltaRequest(unsubscribe=("a",)), available)
    stream.receive(subscribe("a"), available)
    stream.receive(ack(first), available)
    assert contents(pushed(stream, available)) == {"a": "1"}


def test_what_was_given_up_before_its_answer_is_not_held() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    first = pushed(stream, available)
    stream.receive(DeltaRequest(unsubscribe=("a",)), available)
    stream.receive(ack(first), available)
    assert stream.next_push({}) is None


def test_a_client_that_reconnects_gets_only_what_it_does_not_hold() -> None:
    available = having(a="1", b="2", c="3")
    stream = opened(available, "a", "b", "c", a="1", b="old")
    assert contents(pushed(stream, available)) == {"b": "2", "c": "3"}


def test_a_client_that_reconnects_with_everything_gets_nothing() -> None:
    available = having(a="1", b="2")
    stream = opened(available, "a", "b", a="1", b="2")
    assert stream.next_push(available) is None
    assert contents(pushed(stream, having(a="2", b="2"))) == {"a": "2"}


def test_what_a_client_holds_without_wanting_it_is_none_of_our_business() -> None:
    assert opened(having(a="1"), "b", a="1").next_push({}) is None


def test_versions_count_when_a_stream_is_opened_and_never_again() -> None:
    available = having(a="1", b="1")
    stream = acknowledged(available, "a")
    stream.receive(DeltaRequest(subscribe=("b",), initial_versions={"b": "1"}), available)
    assert contents(pushed(stream, available)) == {"b": "1"}


def test_an_unknown_name_is_withheld_and_answered_when_it_appears() -> None:
    stream = opened(having(a="1"), "late", "a")
    assert stream.withheld(having(a="1")) == ("late",)
    first = pushed(stream, having(a="1"))
    assert contents(first) == {"a": "1"}
    stream.receive(ack(first), having(a="1"))
    assert contents(pushed(stream, having(a="1", late="1"))) == {"late": "1"}


def test_only_unknown_names_get_no_response() -> None:
    """An empty response would be acknowledged, and Envoy would wait on."""
    assert opened({}, "nobody").next_push({}) is None


@pytest.mark.parametrize("names", [(), ("*",)])
def test_there_is_no_wildcard(names: tuple[str, ...]) -> None:
    available = having(a="1", b="2")
    stream = opened(available, *names)
    assert stream.next_push(available) is None
    assert stream.withheld(available) == names


def test_a_name_that_is_gone_is_told_once() -> None:
    stream = acknowledged(having(a="1", b="1"), "a", "b")
    gone = pushed(stream, having(a="1"))
    assert (gone.resources, gone.removed) == ((), ("b",))
    assert stream.receive(ack(gone), having(a="1")) == Acknowledged(gone.version, ("b",))
    assert stream.next_push(having(a="1")) is None


def test_a_name_that_comes_back_is_sent_even_with_the_same_content() -> None:
    stream = acknowledged(having(a="1"), "a")
    gone = pushed(stream, {})
    assert stream.next_push(having(a="1")) is None
    stream.receive(ack(gone), having(a="1"))
    assert contents(pushed(stream, having(a="1"))) == {"a": "1"}


def test_a_refused_removal_is_not_repeated() -> None:
    stream = acknowledged(having(a="1"), "a")
    gone = pushed(stream, {})
    assert isinstance(stream.receive(nack(gone), {}), Rejected)
    assert stream.next_push({}) is None


def test_a_name_that_was_never_there_is_not_told_as_removed() -> None:
    """An agent that has only just started knows less than its clients."""
    assert opened({}, "a", a="1").next_push({}) is None


def test_a_refusal_is_reported_and_answered_once_with_what_was_accepted_last() -> None:
    stream = acknowledged(having(a="1", b="1"), "a", "b")
    now = having(a="2", b="1")
    assert stream.receive(nack(pushed(stream, now)), now) == Rejected("2", ("a",), "broken")
    restored = pushed(stream, now)
    assert contents(restored) == {"a": "1"}
    stream.receive(ack(restored), now)
    assert stream.next_push(now) is None


def test_what_is_restored_is_what_this_client_says_that_it_holds() -> None:
    stream = opened(having(a="1"), "a", a="1")
    now = having(a="2")
    stream.receive(nack(pushed(stream, now)), now)
    assert contents(pushed(stream, now)) == {"a": "1"}


def test_what_is_gone_meanwhile_is_not_restored() -> None:
    stream = acknowledged(having(a="1"), "a")
    bad = pushed(stream, having(a="2"))
    stream.receive(nack(bad), {})
    assert pushed(stream, {}) == DeltaPush("3", (), ("a",))


def test_what_was_given_up_meanwhile_is_not_restored() -> None:
    stream = acknowledged(having(a="1"), "a")
    now = having(a="2")
    bad = pushed(stream, now)
    stream.receive(DeltaRequest(unsubscribe=("a",), nonce=bad.nonce, error="broken"), now)
    assert stream.next_push(now) is None


def test_a_refused_first_secret_is_not_sent_again_until_it_changes() -> None:
    stream = opened(having(a="1"), "a")
    stream.receive(nack(pushed(stream, having(a="1"))), having(a="1"))
    assert stream.next_push(having(a="1")) is None
    assert contents(pushed(stream, having(a="2"))) == {"a": "2"}


def test_refusing_even_what_was_accepted_does_not_make_a_loop() -> None:
    stream = acknowledged(having(a="1"), "a")
    now = having(a="2")
    for _ in range(2):
        stream.receive(nack(pushed(stream, now)), now)
    assert stream.next_push(now) is None


def test_of_several_changes_refused_together_the_good_ones_arrive_and_the_bad_one_is_dropped() -> None:
    stream = acknowledged(having(a="1", b="1", c="1"), "a", "b", "c")
    now = having(a="2", b="bad", c="2")
    client = {"a": "1", "b": "1", "c": "1"}
    for _ in range(6):
        push = pushed(stream, now)
        if "bad" in contents(push).values():
            stream.receive(nack(push), now)
        else:
            client |= contents(push)
            stream.receive(ack(push), now)
    assert client == {"a": "2", "b": "1", "c": "2"}
    assert stream.next_push(now) is None


def test_a_refusal_text_is_redacted() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    answer = stream.receive(nack(pushed(stream, available), 'private_key { inline_bytes: "-----BEGIN" }'), available)
    assert isinstance(answer, Rejected)
    assert "BEGIN" not in answer.reason


def test_more_names_than_any_client_asks_for_are_refused_however_they_come() -> None:
    stream = opened({}, *(f"name-{number}" for number in range(1000)))
    stream.receive(subscribe("name-0"), {})
    with pytest.raises(BadInput) as refused:
        stream.receive(subscribe("one-more"), {})
    assert refused.value.rule == "too_many_names"
