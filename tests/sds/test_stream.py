"""The rules of one state-of-the-world stream, one by one."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any

from citadel_py.core.errors import BadInput
from citadel_py.sds.encoding import Resource
from citadel_py.sds.stream import Acknowledged, Push, Rejected, Request, Stream, version_of


def resource(name: str, version: str) -> Resource:
    return Resource(name, version, Any())


def having(**versions: str) -> dict[str, Resource]:
    return {name: resource(name, version) for name, version in versions.items()}


def pushed(stream: Stream, available: dict[str, Resource]) -> Push:
    push = stream.next_push(available)
    assert push is not None
    return push


def ack(push: Push, *names: str) -> Request:
    return Request(names or tuple(each.name for each in push.resources), push.version, push.nonce)


def nack(push: Push, *names: str, held: str = "", error: str = "broken") -> Request:
    return Request(names or tuple(each.name for each in push.resources), held, push.nonce, error)


def opened(available: dict[str, Resource], *names: str, version: str = "") -> Stream:
    stream = Stream()
    stream.receive(Request(names, version), available)
    return stream


def acknowledged(available: dict[str, Resource], *names: str) -> Stream:
    """A stream whose client has taken everything that is available."""
    stream = opened(available, *names)
    stream.receive(ack(pushed(stream, available), *names), available)
    return stream


def test_nothing_is_sent_before_the_first_request() -> None:
    assert Stream().next_push(having(a="1")) is None


def test_the_first_request_is_answered_with_what_was_asked_for() -> None:
    available = having(a="1", b="2")
    assert pushed(opened(available, "a"), available) == Push("1", "1", (resource("a", "1"),))


def test_a_response_has_a_nonce_and_a_version() -> None:
    """Envoy's answer to an empty nonce, or an empty version, looks like a first request."""
    available = having(a="1")
    push = pushed(opened(available, "a"), available)
    assert push.nonce
    assert push.version


def test_one_resource_gives_its_own_version_to_the_response() -> None:
    assert version_of([resource("a", "v1")]) == "v1"


def test_the_version_of_several_depends_on_all_of_them_and_not_on_their_order() -> None:
    a, b = resource("a", "1"), resource("b", "2")
    assert version_of([a, b]) == version_of([b, a])
    assert version_of([a, b]) != version_of([a, resource("b", "3")])
    assert version_of([a, b]) not in ("1", "2", version_of([a, b, resource("c", "3")]))


def test_an_acknowledgement_is_reported_and_answered_with_nothing() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    push = pushed(stream, available)
    assert stream.receive(ack(push), available) == Acknowledged("1", ("a",))
    assert stream.next_push(available) is None


def test_a_change_is_pushed() -> None:
    stream = acknowledged(having(a="1"), "a")
    assert pushed(stream, having(a="2")).version == "2"


def test_a_change_of_another_name_is_not_pushed() -> None:
    stream = acknowledged(having(a="1", b="1"), "a")
    assert stream.next_push(having(a="1", b="2")) is None


def test_nothing_is_sent_while_an_answer_is_awaited_and_later_changes_go_out_as_one() -> None:
    stream = opened(having(a="1"), "a")
    first = pushed(stream, having(a="1"))
    assert stream.next_push(having(a="2")) is None
    assert stream.next_push(having(a="3")) is None
    stream.receive(ack(first), having(a="3"))
    assert pushed(stream, having(a="3")).version == "3"


def test_a_change_that_is_taken_back_before_the_answer_is_not_sent_at_all() -> None:
    stream = opened(having(a="1"), "a")
    first = pushed(stream, having(a="1"))
    stream.receive(ack(first), having(a="1"))
    assert stream.next_push(having(a="1")) is None


@pytest.mark.parametrize("nonce", ["0", "2", "other"])
def test_a_request_with_a_stale_nonce_is_ignored(nonce: str) -> None:
    available = having(a="1", b="1")
    stream = opened(available, "a")
    push = pushed(stream, available)
    assert stream.receive(Request(("b",), push.version, nonce), available) is None
    assert stream.names == ("a",)
    assert stream.next_push(available) is None


def test_an_answer_that_comes_twice_counts_once() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    push = pushed(stream, available)
    stream.receive(ack(push), available)
    assert stream.receive(nack(push), available) is None
    assert stream.next_push(available) is None


def test_an_empty_nonce_in_mid_stream_is_a_whole_subscription_and_no_answer() -> None:
    """Envoy sends one when it learns of a second secret before it has seen the first response."""
    available = having(a="1", b="1")
    stream = opened(available, "a")
    first = pushed(stream, available)
    assert stream.receive(Request(("b", "a")), available) is None
    assert stream.next_push(available) is None
    assert stream.receive(ack(first, "b", "a"), available) == Acknowledged("1", ("a",))
    assert {each.name for each in pushed(stream, available).resources} == {"a", "b"}


def test_asking_again_for_what_is_held_does_not_make_a_loop() -> None:
    available = having(a="1")
    stream = acknowledged(available, "a")
    for _ in range(3):
        stream.receive(Request(("a",)), available)
        assert stream.next_push(available) is None


def test_a_new_name_on_the_last_nonce_is_answered() -> None:
    available = having(a="1", b="1")
    stream = acknowledged(available, "a")
    stream.receive(Request(("a", "b"), "1", "1"), available)
    assert {each.name for each in pushed(stream, available).resources} == {"a", "b"}


def test_giving_up_a_name_is_answered_with_nothing() -> None:
    available = having(a="1", b="1")
    stream = acknowledged(available, "a", "b")
    stream.receive(Request(("a",), version_of(available.values()), "1"), available)
    assert stream.next_push(available) is None
    assert stream.next_push(having(a="1", b="2")) is None


def test_a_name_that_was_given_up_and_is_wanted_again_is_sent_again() -> None:
    available = having(a="1", b="1")
    stream = acknowledged(available, "a", "b")
    for names in (("a",), ("a", "b")):
        stream.receive(Request(names, version_of(available.values()), "1"), available)
    assert {each.name for each in pushed(stream, available).resources} == {"a", "b"}


def test_a_name_asked_for_twice_is_sent_once() -> None:
    available = having(a="1")
    assert len(pushed(opened(available, "a", "a"), available).resources) == 1


def test_an_unknown_name_is_withheld_without_hurting_the_others() -> None:
    available = having(a="1")
    stream = opened(available, "nobody", "a")
    assert stream.withheld(available) == ("nobody",)
    assert [each.name for each in pushed(stream, available).resources] == ["a"]


def test_only_unknown_names_get_no_response() -> None:
    """An empty response would be acknowledged, and Envoy would wait on."""
    assert opened({}, "nobody").next_push({}) is None


def test_an_unknown_name_is_answered_when_it_appears() -> None:
    stream = opened({}, "late")
    assert stream.next_push({}) is None
    assert pushed(stream, having(late="1")).version == "1"


def test_a_name_that_disappears_takes_nothing_away() -> None:
    stream = acknowledged(having(a="1", b="1"), "a", "b")
    assert stream.next_push(having(a="1")) is None


def test_a_client_that_reconnects_with_the_current_version_gets_nothing() -> None:
    available = having(a="1")
    stream = opened(available, "a", version="1")
    assert stream.next_push(available) is None
    assert pushed(stream, having(a="2")).version == "2"


def test_a_client_of_several_names_that_reconnects_with_the_current_version_gets_nothing() -> None:
    available = having(a="1", b="2")
    assert opened(available, "b", "a", version=version_of(available.values())).next_push(available) is None


def test_a_client_that_reconnects_with_another_version_gets_the_current_one() -> None:
    available = having(a="2")
    assert pushed(opened(available, "a", version="1"), available).version == "2"


def test_a_first_request_counts_whatever_nonce_it_brings_from_an_earlier_stream() -> None:
    stream = Stream()
    stream.receive(Request(("a",), "0", "77"), having(a="1"))
    assert pushed(stream, having(a="1")).version == "1"


def test_a_refusal_is_reported_and_answered_once_with_what_was_accepted_last() -> None:
    stream = acknowledged(having(a="1"), "a")
    now = having(a="2")
    bad = pushed(stream, now)
    assert stream.receive(nack(bad, held="1"), now) == Rejected("2", ("a",), "broken")
    restored = pushed(stream, now)
    assert (restored.version, restored.resources) == ("1", (resource("a", "1"),))
    stream.receive(ack(restored), now)
    assert stream.next_push(now) is None


def test_a_refused_first_secret_is_not_sent_again() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    stream.receive(nack(pushed(stream, available)), available)
    assert stream.next_push(available) is None


def test_a_refused_secret_is_sent_again_only_with_another_content() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    stream.receive(nack(pushed(stream, available)), available)
    assert pushed(stream, having(a="2")).version == "2"


def test_refusing_even_what_was_accepted_does_not_make_a_loop() -> None:
    stream = acknowledged(having(a="1"), "a")
    now = having(a="2")
    for _ in range(2):
        stream.receive(nack(pushed(stream, now)), now)
    assert stream.next_push(now) is None


def test_what_is_restored_is_what_this_client_says_that_it_holds() -> None:
    """After a reconnect nothing was acknowledged on this stream, and yet the client holds it."""
    stream = opened(having(a="1"), "a", version="1")
    now = having(a="2")
    stream.receive(nack(pushed(stream, now)), now)
    assert pushed(stream, now).version == "1"


def test_an_answer_with_another_version_and_no_error_is_a_refusal() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    answer = stream.receive(Request(("a",), "", pushed(stream, available).nonce), available)
    assert isinstance(answer, Rejected)


def test_of_several_changes_refused_together_the_good_ones_arrive_and_the_bad_one_is_dropped() -> None:
    stream = acknowledged(having(a="1", b="1", c="1"), "a", "b", "c")
    now = having(a="2", b="bad", c="2")
    client = {"a": "1", "b": "1", "c": "1"}
    for _ in range(6):
        push = pushed(stream, now)
        contents = {each.name: each.version for each in push.resources}
        if "bad" in contents.values():
            stream.receive(nack(push), now)
        else:
            client = contents
            stream.receive(ack(push), now)
    assert client == {"a": "2", "b": "1", "c": "2"}
    assert stream.next_push(now) is None


def test_refusing_what_was_accepted_does_not_hold_up_what_is_left_to_try() -> None:
    stream = acknowledged(having(a="1", b="1"), "a", "b")
    now = having(a="bad", b="2")
    for _ in range(2):
        stream.receive(nack(pushed(stream, now)), now)
    sent = []
    for _ in range(3):
        push = pushed(stream, now)
        sent.append(tuple(each.version for each in push.resources))
        stream.receive(nack(push) if "bad" in sent[-1] else ack(push), now)
    assert sent == [("bad", "1"), ("1", "1"), ("1", "2")]
    assert stream.next_push(now) is None


def test_a_refusal_text_is_redacted() -> None:
    available = having(a="1")
    stream = opened(available, "a")
    refusal = nack(pushed(stream, available), error='private_key { inline_bytes: "-----BEGIN PRIVATE KEY-----" }')
    answer = stream.receive(refusal, available)
    assert isinstance(answer, Rejected)
    assert "BEGIN" not in answer.reason


def test_more_names_than_any_client_asks_for_are_refused() -> None:
    with pytest.raises(BadInput, match="resource names") as refused:
        opened({}, *(f"name-{number}" for number in range(1001)))
    assert refused.value.rule == "too_many_names"


def test_an_endless_name_is_refused() -> None:
    with pytest.raises(BadInput) as refused:
        opened({}, "n" * 2101)
    assert refused.value.rule == "name_too_long"
