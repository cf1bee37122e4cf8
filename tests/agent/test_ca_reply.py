"""Whatever the CA answers: only the SVID that was asked for is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from citadel_py.agent.ca_reply import read_reply
from citadel_py.core.engine import Engine
from citadel_py.core.errors import CitadelError
from citadel_py.core.keys import KeyType, generate_key
from citadel_py.core.ports import SignedReply
from citadel_py.core.spiffe import TrustDomain
from tests.agent.support import CART, ID
from tests.ca.support import Held, make_engine, mint

NOW = datetime(2026, 3, 4, tzinfo=UTC)


@dataclass
class Answer:
    """A right answer, until a test changes it."""

    engine: Engine
    held: Held

    def elements(self) -> list[str]:
        return [*(pem.decode() for pem in self.held.svid.pem_elements()), self.engine.issuer.bundle.to_pem().decode()]


@pytest.fixture(scope="module")
def answer() -> Answer:
    engine = make_engine(NOW)
    return Answer(engine, mint(engine, ID.path, now=NOW, ttl=timedelta(hours=1)))


@pytest.fixture(scope="module")
def another() -> Answer:
    """Of another authority with the same name."""
    engine = make_engine(NOW)
    return Answer(engine, mint(engine, ID.path, now=NOW))


def read(answer: Answer, elements: list[str] | None = None, *, now: datetime = NOW, **changes: object) -> SignedReply:
    wanted = {"public_key": answer.held.key.public_key(), "id": ID, "now": now} | changes
    return read_reply(answer.elements() if elements is None else elements, **wanted)  # type: ignore[arg-type]


def rule_of(attempt: Callable[[], SignedReply]) -> str:
    with pytest.raises(CitadelError) as refused:
        attempt()
    return refused.value.rule


def test_a_right_answer_is_chain_and_bundle(answer: Answer) -> None:
    reply = read(answer)
    assert reply.svid.chain == answer.held.svid.chain
    assert reply.bundle == answer.engine.issuer.bundle
    assert reply.renew_at is None


def test_the_last_element_is_the_whole_bundle(answer: Answer, another: Answer) -> None:
    elements = answer.elements()
    elements[-1] += another.elements()[-1]
    assert len(read(answer, elements).bundle.authorities) == 2


@pytest.mark.parametrize("count", [0, 1, 13])
def test_too_few_and_too_many_elements_are_refused(answer: Answer, count: int) -> None:
    elements = (answer.elements() * 5)[:count]
    assert rule_of(lambda: read(answer, elements)) == "reply_shape"


def test_two_certificates_in_one_element_are_refused(answer: Answer) -> None:
    leaf, intermediate, bundle = answer.elements()
    assert rule_of(lambda: read(answer, [leaf + intermediate, bundle])) == "reply_shape"


def test_another_key_is_refused(answer: Answer) -> None:
    other = generate_key(KeyType.P256).public_key()
    assert rule_of(lambda: read(answer, public_key=other)) == "reply_key_mismatch"


def test_another_identity_is_refused(answer: Answer) -> None:
    assert rule_of(lambda: read(answer, id=CART)) == "unexpected_id"


def test_another_trust_domain_is_refused(answer: Answer) -> None:
    id = type(ID)(TrustDomain("other.test"), ID.path)
    assert rule_of(lambda: read(answer, id=id)) == "trust_domain_mismatch"


def test_a_chain_that_does_not_end_in_the_bundle_is_refused(answer: Answer, another: Answer) -> None:
    elements = [*answer.elements()[:-1], another.elements()[-1]]
    assert rule_of(lambda: read(answer, elements)) not in ("reply_shape", "reply_key_mismatch")


@pytest.mark.parametrize("late", [timedelta(hours=2), timedelta(hours=-2)])
def test_a_certificate_that_is_not_valid_now_points_to_the_clocks(answer: Answer, late: timedelta) -> None:
    with pytest.raises(CitadelError) as refused:
        read(answer, now=NOW + late)
    assert any("clocks" in hint for hint in refused.value.hints)


@pytest.mark.parametrize("broken", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_elements_that_cannot_be_read_are_refused(answer: Answer, place: int, broken: str) -> None:
    elements = answer.elements()
    elements[place] = broken
    with pytest.raises(CitadelError):
        read(answer, elements)
