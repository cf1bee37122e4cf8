"""Tokens that only the API server can tell: asked last, seldom, and never believed further than it says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from citadel_py.ca.authn import Authentication, CallCredentials
from citadel_py.ca.certificate_authn import CertificateAuthenticator
from citadel_py.ca.join_authn import JoinTokenAuthenticator
from citadel_py.ca.jwt_authn import JWTAuthenticator, JWTRules
from citadel_py.ca.token_review import Review, ReviewRules, TokenReviewAuthenticator, TokenReviewer
from citadel_py.core.errors import CitadelError, Unauthenticated, Unavailable
from citadel_py.core.join_token import token_digest
from citadel_py.core.policy import Caller, Method
from tests.ca.support import AUDIENCE, ISSUER, TD, Clock, World, until
from tests.ca.token_reviewer_contract import OURS, ReviewerContract

RULES = ReviewRules(OURS, TD)


class FakeCluster:
    """An API server in this process: it knows the tokens that it made, and counts what it is asked."""

    def __init__(self) -> None:
        self.tokens: dict[str, tuple[str, str]] = {}
        self.asked: list[str] = []
        self.open = 0
        self.most_open = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.failure: Unavailable | None = None
        self.ignores_audiences = False

    def token(self, account: str = "cart", audience: str = OURS) -> str:
        text = f"eyJ0.{hashlib.sha256(f'{account} {audience} {len(self.tokens)}'.encode()).hexdigest()}.c2ln"
        self.tokens[text] = (f"system:serviceaccount:shop:{account}", audience)
        return text

    async def review(self, token: str, audiences: Sequence[str]) -> Review:
        self.asked.append(token)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self.may_answer.wait()
        finally:
            self.open -= 1
        if self.failure:
            raise Unavailable(self.failure.message, rule=self.failure.rule)
        username, audience = self.tokens.get(token, ("", ""))
        if not username or (audience not in audiences and not self.ignores_audiences):
            return Review(authenticated=False, error="token is not good for these audiences")
        told = () if self.ignores_audiences else (audience,)
        return Review(authenticated=True, username=username, audiences=told)


class TestFakeCluster(ReviewerContract):
    """The double is held to what a real one has to do."""

    @pytest.fixture(autouse=True)
    def _cluster(self) -> None:
        self.cluster = FakeCluster()

    def reviewer(self) -> AbstractAsyncContextManager[TokenReviewer]:
        return self._reviewer()

    def unreachable(self) -> AbstractAsyncContextManager[TokenReviewer]:
        self.cluster.failure = Unavailable("the API server does not answer", rule="token_review_failed")
        return self._reviewer()

    @asynccontextmanager
    async def _reviewer(self) -> AsyncIterator[TokenReviewer]:
        yield self.cluster

    async def token(self, *, audience: str, namespace: str = "shop", account: str = "cart") -> str:
        assert namespace == "shop"
        return self.cluster.token(account, audience)


class Asking:
    """An authenticator on the fake, and a clock."""

    def __init__(self, rules: ReviewRules = RULES) -> None:
        self.clock = Clock()
        self.cluster = FakeCluster()
        self.authenticator = TokenReviewAuthenticator(rules, self.cluster, now=self.clock.now)

    async def caller(self, token: str) -> Caller | None:
        credentials = CallCredentials((f"Bearer {token}",))
        attested = await self.authenticator.attest(credentials, now=self.clock.now())
        return attested.caller if attested else None

    async def refusal(self, token: str) -> CitadelError:
        with pytest.raises(CitadelError) as caught:
            await self.caller(token)
        return caught.value


@pytest.fixture
def asking() -> Asking:
    return Asking()


async def test_a_good_token_is_its_service_accounts(asking: Asking) -> None:
    caller = await asking.caller(asking.cluster.token("cart"))
    assert caller is not None
    assert (caller.method, caller.subject) == (Method.TOKEN_REVIEW, "system:serviceaccount:shop:cart")
    assert str(caller.id) == "spiffe://example.org/ns/shop/sa/cart"


async def test_a_good_token_is_asked_about_once_in_a_while(asking: Asking) -> None:
    token = asking.cluster.token()
    for _ in range(3):
        await asking.caller(token)
    assert len(asking.cluster.asked) == 1
    asking.clock.advance(RULES.good_for)
    del asking.cluster.tokens[token]  # it was taken back meanwhile
    assert isinstance(await asking.refusal(token), Unauthenticated)


async def test_a_bad_token_is_asked_about_again_soon(asking: Asking) -> None:
    rules = [(await asking.refusal("a.b.c")).rule for _ in range(3)]
    assert rules == ["token_review_refused"] * 3
    assert len(asking.cluster.asked) == 1
    asking.clock.advance(RULES.bad_for)
    await asking.refusal("a.b.c")
    assert len(asking.cluster.asked) == 2


async def test_a_flood_of_bad_tokens_does_not_push_a_good_one_out() -> None:
    asking = Asking(replace(RULES, cached=10))
    token = asking.cluster.token()
    await asking.caller(token)
    for number in range(20):
        await asking.refusal(f"a.b.c{number}")
    await asking.caller(token)
    assert asking.cluster.asked.count(token) == 1


async def test_a_server_that_ignores_audiences_is_not_believed(asking: Asking) -> None:
    asking.cluster.ignores_audiences = True
    error = await asking.refusal(asking.cluster.token(audience="somebody-else"))
    assert (type(error), error.rule) == (Unauthenticated, "token_review_audience")


async def test_an_account_that_is_no_service_account_is_nobody(asking: Asking) -> None:
    asking.cluster.tokens["a.b.c"] = ("kubernetes-admin", OURS)
    assert (await asking.refusal("a.b.c")).rule == "jwt_subject"


@pytest.mark.parametrize("token", ["opaque", "a.b", "a.b.c.d", "a.b.c%", "a..c", "citadel-join-abc"])
async def test_what_does_not_look_like_a_token_is_not_worth_a_question(asking: Asking, token: str) -> None:
    assert await asking.caller(token) is None
    assert asking.cluster.asked == []


# ------------------------------------------------------------------------------------------------ when it fails


async def test_a_reviewer_that_fails_refuses_nobody_and_is_asked_again(asking: Asking) -> None:
    token = asking.cluster.token()
    asking.cluster.failure = Unavailable("connection refused", rule="token_review_failed")
    error = await asking.refusal(token)
    assert (type(error), error.rule) == (Unavailable, "token_review_failed")
    asking.cluster.failure = None
    assert await asking.caller(token)


async def test_one_that_does_not_answer_is_not_waited_for() -> None:
    asking = Asking(replace(RULES, deadline=timedelta(milliseconds=5)))
    asking.cluster.may_answer.clear()
    error = await asking.refusal("a.b.c")
    assert (type(error), error.rule) == (Unavailable, "token_review_timeout")
    assert asking.cluster.open == 0


async def test_few_reviews_are_open_at_once_and_few_wait() -> None:
    asking = Asking(replace(RULES, open_at_once=2, waiting=6))
    asking.cluster.may_answer.clear()
    calls = [asyncio.create_task(asking.refusal(f"a.b.c{number}")) for number in range(20)]
    await until(lambda: sum(call.done() for call in calls) == 14)
    asking.cluster.may_answer.set()
    errors = await asyncio.gather(*calls)
    assert [each.rule for each in errors].count("too_many_reviews") == 14
    assert asking.cluster.most_open == 2
    assert len(asking.cluster.asked) == 6


async def test_calls_with_the_same_token_share_a_review_and_none_takes_it_from_the_others(asking: Asking) -> None:
    token = asking.cluster.token()
    asking.cluster.may_answer.clear()
    first, *others = [asyncio.create_task(asking.caller(token)) for _ in range(10)]
    await until(lambda: asking.cluster.open == 1)
    first.cancel()
    asking.cluster.may_answer.set()
    assert all(await asyncio.gather(*others))
    assert asking.cluster.asked == [token]


# ------------------------------------------------------------------------------------------------ among the others


def complete(world: World, cluster: FakeCluster) -> Authentication:
    """All four kinds, in the order in which the service tries them."""
    return Authentication(
        [
            CertificateAuthenticator(lambda: world.engine.issuer.bundle),
            JoinTokenAuthenticator(world.ledger),
            JWTAuthenticator(JWTRules(ISSUER, AUDIENCE, TD), world),
            TokenReviewAuthenticator(RULES, cluster, now=world.clock.now),
        ]
    )


async def method_of(world: World, cluster: FakeCluster, token: str, chain: bytes | None = None) -> Method:
    credentials = CallCredentials((f"Bearer {token}",), chain)
    return (await complete(world, cluster).attest(credentials, now=world.clock.now())).caller.method


async def test_whoever_is_known_otherwise_costs_no_review(world: World) -> None:
    cluster = FakeCluster()
    chain = world.mint().svid.chain_pem()
    assert await method_of(world, cluster, cluster.token(), chain) is Method.MTLS
    assert await method_of(world, cluster, world.join_token()) is Method.JOIN_TOKEN
    assert await method_of(world, cluster, world.issuer.token()) is Method.JWT
    assert cluster.asked == []


async def test_a_token_that_cannot_be_verified_here_is_reviewed(world: World) -> None:
    cluster = FakeCluster()
    assert await method_of(world, cluster, cluster.token()) is Method.TOKEN_REVIEW


async def test_a_certificate_that_has_ended_does_not_spoil_a_token_that_is_reviewed(world: World) -> None:
    cluster = FakeCluster()
    chain = world.mint(ttl=timedelta(minutes=1)).svid.chain_pem()
    world.clock.advance(timedelta(hours=1))
    assert await method_of(world, cluster, cluster.token(), chain) is Method.TOKEN_REVIEW


async def test_a_used_join_token_is_never_reviewed(world: World) -> None:
    cluster = FakeCluster()
    token = world.join_token()
    world.ledger.redeem(token_digest(token), now=world.clock.now())
    with pytest.raises(Unauthenticated) as caught:
        await method_of(world, cluster, token)
    assert caught.value.rule == "join_token_used"
    assert cluster.asked == []


async def test_while_reviews_fail_a_token_is_neither_good_nor_bad(world: World) -> None:
    cluster = FakeCluster()
    cluster.failure = Unavailable("connection refused", rule="token_review_failed")
    with pytest.raises(Unavailable):
        await method_of(world, cluster, cluster.token())
