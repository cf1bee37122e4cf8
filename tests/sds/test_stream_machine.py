"""Any sequence of requests, changes, refusals and reconnects ends in the right state, without loops.

The other side is a model of Envoy: it applies a response as a whole or refuses it as a whole, answers
every response once and in order, and keeps what it holds when the stream breaks.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from citadel_py.sds.encoding import Resource
from citadel_py.sds.stream import Push, Request, Stream, version_of

NAMES = ("a", "b", "c", "d")
subscriptions = st.lists(st.sampled_from(NAMES), unique=True, min_size=1).map(tuple)


class Proxy(RuleBasedStateMachine):
    """A proxy and the server's stream to it. Contents that start with `bad` are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.available: dict[str, Resource] = {}
        self.changes = 0
        self.names: tuple[str, ...] = ()
        self.held: dict[str, Resource] = {}
        self.told: dict[str, Resource] = {}  # the part of it that the server can know of
        self.accepted = ""  # version_info of the last accepted response
        self.unanswered: Push | None = None
        self.nonce = ""
        self.was_refused = False
        self.stream = Stream()

    @initialize(names=subscriptions)
    def connect(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.send(Request(names, self.accepted))

    @rule(name=st.sampled_from(NAMES), is_bad=st.booleans())
    def change(self, name: str, is_bad: bool) -> None:  # noqa: FBT001 - called by hypothesis
        self.changes += 1
        version = f"{'bad' if is_bad else 'good'}-{name}-{self.changes}"
        self.available[name] = Resource(name, version, Any())
        self.receive()

    @rule(names=st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    def change_several(self, names: list[str]) -> None:
        for name in names:
            self.changes += 1
            self.available[name] = Resource(name, f"good-{name}-{self.changes}", Any())
        self.receive()

    @rule()
    def answer(self) -> None:
        if self.unanswered is None:
            return
        push, self.unanswered = self.unanswered, None
        self.was_refused = any(each.version.startswith("bad") for each in push.resources)
        if self.was_refused:
            self.send(Request(self.names, self.accepted, push.nonce, "refused"))
        else:
            taken = {each.name: each for each in push.resources if each.name in self.names}
            self.held |= taken
            self.told |= taken
            self.accepted = push.version
            self.send(Request(self.names, push.version, push.nonce))

    @rule(names=subscriptions)
    def subscribe(self, names: tuple[str, ...]) -> None:
        """With the nonce of the last response that was answered; before the first one, with none."""
        if self.unanswered is None or not self.nonce:
            self.want(names)
            self.send(Request(names, self.accepted, self.nonce))

    @rule(names=subscriptions)
    def subscribe_with_an_empty_nonce(self, names: tuple[str, ...]) -> None:
        self.want(names)
        self.send(Request(names))

    @rule(names=subscriptions)
    def say_something_stale(self, names: tuple[str, ...]) -> None:
        self.send(Request(names, "other", "stale", "refused long ago"))

    @rule()
    def reconnect(self) -> None:
        self.stream, self.unanswered, self.nonce, self.was_refused = Stream(), None, "", False
        if version_of(self.held.values()) != self.accepted:
            self.accepted = ""  # it gave something up since: a version alone cannot tell what is left
        wanted = {name: self.available[name] for name in self.names if name in self.available}
        self.told = wanted if wanted and version_of(wanted.values()) == self.accepted else {}
        self.send(Request(self.names, self.accepted))

    @rule()
    def answer_everything(self) -> None:
        """A few responses later there is silence."""
        responses = 0
        while self.unanswered is not None:
            self.answer()
            responses += 1
            assert responses <= 3 + 3 * len(self.names)

    @invariant()
    def silence_means_that_all_good_secrets_have_arrived(self) -> None:
        if self.unanswered is None:
            good = [each for each in self.available.values() if each.version.startswith("good")]
            assert all(self.held.get(each.name) == each for each in good if each.name in self.names)

    def want(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.held = {name: each for name, each in self.held.items() if name in names}
        self.told = {name: each for name, each in self.told.items() if name in names}

    def send(self, request: Request) -> None:
        self.stream.receive(request, self.available)
        self.receive()

    def receive(self) -> None:
        push = self.stream.next_push(self.available)
        if push is None:
            return
        assert self.unanswered is None, "a second response while one is unanswered"
        assert push.nonce != self.nonce
        is_new = any(self.told.get(each.name) != each for each in push.resources)
        assert is_new or self.was_refused, "what is held already was sent"
        self.unanswered, self.nonce, self.was_refused = push, push.nonce, False


Proxy.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestProxy = Proxy.TestCase
