"""Incremental streams: any sequence of requests, changes, refusals and reconnects ends in the right state.

The other side is a model of Envoy: it applies a response as a whole or refuses it as a whole, answers
every response once and in order, and keeps what it holds when the stream breaks.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from citadel_py.sds.delta import DeltaPush, DeltaRequest, DeltaStream
from citadel_py.sds.encoding import Resource

NAMES = ("a", "b", "c", "d")
some_names = st.lists(st.sampled_from(NAMES), unique=True, min_size=1).map(tuple)


class Proxy(RuleBasedStateMachine):
    """A proxy and the server's stream to it. Contents that start with `bad` are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.available: dict[str, Resource] = {}
        self.changes = 0
        self.names: set[str] = set()
        self.held: dict[str, Resource] = {}
        self.known: set[str] = set()  # of what is held the part that the server can know of
        self.asked: set[str] = set()  # in mid-stream: to be sent whatever is held
        self.unanswered: DeltaPush | None = None
        self.nonces: set[str] = set()
        self.was_refused = False
        self.to_restore: dict[str, Resource] = {}  # after a refusal: what the next response has to be
        self.stream = DeltaStream()

    @initialize(names=some_names)
    def connect(self, names: tuple[str, ...]) -> None:
        self.names = set(names)
        self.open()

    @rule(name=st.sampled_from(NAMES), is_bad=st.booleans())
    def change(self, name: str, is_bad: bool) -> None:  # noqa: FBT001 - called by hypothesis
        self.put(name, "bad" if is_bad else "good")
        self.receive()

    @rule(names=some_names)
    def change_several(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.put(name, "good")
        self.receive()

    @rule(name=st.sampled_from(NAMES))
    def withdraw(self, name: str) -> None:
        self.available.pop(name, None)
        self.receive()

    @rule()
    def answer(self) -> None:
        if self.unanswered is None:
            return
        push, self.unanswered = self.unanswered, None
        self.was_refused = any(each.version.startswith("bad") for each in push.resources)
        self.held = {name: each for name, each in self.held.items() if name not in push.removed}
        if self.was_refused:
            names = [each.name for each in push.resources if each.name in self.held and each.name in self.known]
            self.to_restore = {name: self.held[name] for name in names}
            self.send(DeltaRequest(nonce=push.nonce, error="refused"))
        else:
            taken = {each.name: each for each in push.resources if each.name in self.names}
            self.held |= taken
            self.known |= taken.keys()
            self.send(DeltaRequest(nonce=push.nonce))

    @rule(names=some_names, nonce=st.sampled_from(["", "0", "stale"]))
    def subscribe(self, names: tuple[str, ...], nonce: str) -> None:
        self.names |= set(names)
        self.asked |= set(names)
        self.send(DeltaRequest(subscribe=names, nonce=nonce))

    @rule(names=some_names, nonce=st.sampled_from(["", "0", "stale"]))
    def unsubscribe(self, names: tuple[str, ...], nonce: str) -> None:
        self.names -= set(names)
        self.asked -= set(names)
        self.held = {name: each for name, each in self.held.items() if name in self.names}
        self.send(DeltaRequest(unsubscribe=names, nonce=nonce))

    @rule()
    def reconnect(self) -> None:
        self.stream, self.unanswered = DeltaStream(), None
        self.nonces, self.asked, self.was_refused, self.to_restore = set(), set(), False, {}
        self.open()

    @rule()
    def answer_everything(self) -> None:
        """A few responses later there is silence."""
        responses = 0
        while self.unanswered is not None:
            self.answer()
            responses += 1
            assert responses <= 4 + 3 * len(NAMES)

    @invariant()
    def silence_means_that_all_good_secrets_have_arrived(self) -> None:
        if self.unanswered is None:
            good = {name: each for name, each in self.available.items() if each.version.startswith("good")}
            assert all(self.held.get(name) == each for name, each in good.items() if name in self.names)

    @invariant()
    def silence_means_that_who_asked_again_was_answered(self) -> None:
        if self.unanswered is None:
            good = {name for name, each in self.available.items() if each.version.startswith("good")}
            assert not self.asked & good

    @invariant()
    def nobody_ever_holds_a_refused_secret(self) -> None:
        assert not any(each.version.startswith("bad") for each in self.held.values())

    def put(self, name: str, kind: str) -> None:
        self.changes += 1
        self.available[name] = Resource(name, f"{kind}-{name}-{self.changes}", Any())

    def open(self) -> None:
        versions = {name: each.version for name, each in self.held.items()}
        self.known = {name for name, each in self.held.items() if self.available.get(name) == each}
        self.send(DeltaRequest(subscribe=tuple(sorted(self.names)), initial_versions=versions))

    def send(self, request: DeltaRequest) -> None:
        self.stream.receive(request, self.available)
        self.receive()

    def receive(self) -> None:
        push = self.stream.next_push(self.available)
        if self.unanswered is None:
            self.check_restored(push)
        if push is None:
            return
        assert self.unanswered is None, "a second response while one is unanswered"
        assert push.nonce not in self.nonces
        assert push.names, "an empty response"
        assert len(set(push.names)) == len(push.names), "a name twice: Envoy refuses that"
        assert set(push.names) <= self.names, "what is not wanted was sent"
        assert not set(push.removed) & self.available.keys(), "what is there was told as gone"
        for each in push.resources:
            is_new = self.held.get(each.name) != each
            assert is_new or each.name in self.asked or self.was_refused, "what is held already was sent"
            self.asked.discard(each.name)
        self.nonces.add(push.nonce)
        self.unanswered, self.was_refused = push, False

    def check_restored(self, push: DeltaPush | None) -> None:
        expected = [each for name, each in self.to_restore.items() if name in self.available and name in self.names]
        self.to_restore = {}
        if expected:
            assert push is not None
            assert sorted(each.name for each in push.resources) == sorted(each.name for each in expected)
            assert all(each in push.resources for each in expected)


Proxy.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestProxy = Proxy.TestCase
