"""Many certificates over one stream of a whole CA service, by the certificate of a node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from citadel_py.agent.batch_client import MAX_OPEN, BatchClient
from citadel_py.core.admission import AdmissionLimits
from citadel_py.core.csr import create_csr
from citadel_py.core.errors import BadInput, CitadelError, PermissionDenied, Unauthenticated, Unavailable
from citadel_py.core.keys import KeyType, generate_key
from citadel_py.core.ports import HeldSVID, SignedReply
from citadel_py.core.rates import Rate
from citadel_py.core.spiffe import SpiffeID
from tests.agent.support import Agent
from tests.ca.support import HOUR, TD, World, until
from tests.core.policies import rules_of

NODE = "/node/one"
PODS = 'who.id = "spiffe://example.org/node/*"\nwhat.id = ["own", "spiffe://example.org/ns/shop/**"]'
WEB = SpiffeID(TD, "/ns/shop/sa/web")


@pytest.fixture
def node(agent: Agent, world: World) -> HeldSVID:
    """What the node holds, and a policy that lets it ask for others."""
    world.change_policy(rules=rules_of(PODS))
    return agent.minted(NODE)


@pytest.fixture
async def batch(agent: Agent, world: World) -> AsyncIterator[BatchClient]:
    client = BatchClient(agent.client(), now=world.clock.now)
    yield client
    await client.aclose()


async def ask(batch: BatchClient, voucher: HeldSVID, id: SpiffeID = WEB, ttl: timedelta | None = None) -> SignedReply:
    return await batch.sign(create_csr(generate_key(KeyType.P256), id), id=id, ttl=ttl, voucher=voucher)


async def failure(batch: BatchClient, voucher: HeldSVID, id: SpiffeID = WEB) -> CitadelError:
    with pytest.raises(CitadelError) as caught:
        await ask(batch, voucher, id)
    return caught.value


def streams(world: World) -> int:
    """How many are open at the CA."""
    return len(vars(world.issuance)["_streams"])


async def test_a_node_gets_certificates_for_others_in_its_own_name(
    batch: BatchClient, node: HeldSVID, world: World
) -> None:
    reply = await ask(batch, node, ttl=timedelta(minutes=30))
    assert reply.svid.id == WEB
    assert reply.bundle.content_hash == world.engine.issuer.bundle.content_hash
    assert reply.svid.not_after - world.clock.now() <= timedelta(minutes=30)
    (entry,) = world.issued()
    assert (entry.spiffe_id, entry.method) == (str(WEB), "mtls")
    assert NODE in entry.caller


async def test_the_moment_that_the_service_wishes_for_comes_along(batch: BatchClient, node: HeldSVID) -> None:
    reply = await ask(batch, node)
    assert reply.renew_at is not None
    assert reply.svid.not_before < reply.renew_at < reply.svid.not_after


async def test_many_at_once_go_over_one_stream_each_with_its_own_answer(
    batch: BatchClient, node: HeldSVID, world: World
) -> None:
    ids = [SpiffeID(TD, f"/ns/shop/sa/{number}") for number in range(3 * MAX_OPEN)]
    replies = await asyncio.gather(*(ask(batch, node, id) for id in ids))
    assert [reply.svid.id for reply in replies] == ids
    assert streams(world) == 1


async def test_what_policy_refuses_one_hurts_no_other(batch: BatchClient, node: HeldSVID) -> None:
    other = SpiffeID(TD, "/ns/bank/sa/vault")
    refused, good = await asyncio.gather(failure(batch, node, other), ask(batch, node))
    assert isinstance(refused, PermissionDenied)
    assert refused.rule == "identity_not_granted"
    assert good.svid.id == WEB


async def test_a_lifetime_that_is_too_long_is_the_requests_fault(batch: BatchClient, node: HeldSVID) -> None:
    with pytest.raises(BadInput) as caught:
        await ask(batch, node, ttl=timedelta(days=4000))
    assert caught.value.rule == "lifetime_above_maximum"


async def test_a_changed_bundle_counts_from_the_answer_that_it_came_with(
    batch: BatchClient, node: HeldSVID, world: World
) -> None:
    before = await ask(batch, node)
    world.sign_with(world.successor())
    after, again = await ask(batch, node), await ask(batch, node)
    assert len(after.bundle.authorities) == len(before.bundle.authorities) + 1
    assert again.bundle.content_hash == after.bundle.content_hash
    assert streams(world) == 1


async def test_a_renewed_certificate_of_the_node_opens_a_stream_of_its_own(
    batch: BatchClient, agent: Agent, node: HeldSVID, world: World
) -> None:
    await ask(batch, node)
    await ask(batch, agent.minted(NODE))
    await until(lambda: streams(world) == 1)


async def test_where_certificates_are_taken_is_learned(batch: BatchClient, agent: Agent, node: HeldSVID) -> None:
    await ask(batch, node)
    assert agent.learned == [agent.mtls_port]


async def test_what_was_learned_is_asked_for_again_when_it_does_not_work(
    agent: Agent, node: HeldSVID, world: World
) -> None:
    agent.learned = [1]
    batch = BatchClient(agent.client(), now=world.clock.now)
    assert isinstance(await failure(batch, node), Unavailable)
    assert (await ask(batch, node)).svid.id == WEB
    await batch.aclose()


async def test_while_the_service_is_away_all_fail_and_may_try_again(
    batch: BatchClient, node: HeldSVID, world: World
) -> None:
    await ask(batch, node)
    await world.server.stop(timedelta(0))
    failures = await asyncio.gather(*(failure(batch, node) for _ in range(20)))
    assert {type(each) for each in failures} == {Unavailable}


async def test_a_service_that_ends_its_streams_answers_on_another_one(
    batch: BatchClient, node: HeldSVID, world: World
) -> None:
    await ask(batch, node)
    for stream in vars(world.issuance)["_streams"]:
        stream.end()  # as for its age
    assert (await ask(batch, node)).svid.id == WEB


async def test_a_node_that_nobody_knows_is_told_so(batch: BatchClient, agent: Agent, world: World) -> None:
    stranger = agent.minted(NODE, ttl=timedelta(minutes=5))
    world.clock.advance(HOUR)
    assert isinstance(await failure(batch, stranger), Unauthenticated)


async def test_without_anything_to_ask_the_stream_ends(agent: Agent, node: HeldSVID, world: World) -> None:
    batch = BatchClient(agent.client(), now=world.clock.now, idle=timedelta(milliseconds=1))
    await ask(batch, node)
    await until(lambda: streams(world) == 0)
    assert (await ask(batch, node)).svid.id == WEB
    await batch.aclose()


async def test_what_is_not_answered_in_time_fails_by_itself(agent: Agent, node: HeldSVID, world: World) -> None:
    batch = BatchClient(agent.client(), now=world.clock.now, deadline=timedelta(seconds=0.5))
    await ask(batch, node)
    world.turnstile.open.clear()
    error = await failure(batch, node)
    world.turnstile.open.set()
    assert isinstance(error, Unavailable)
    assert "no answer within 0.5 s" in str(error)
    assert (await ask(batch, node)).svid.id == WEB
    await batch.aclose()


async def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = AdmissionLimits(caller=Rate(1, HOUR))
    async with World(tmp_path, token_key, admission=limits).running() as world:
        agent = Agent(world)
        world.change_policy(rules=rules_of(PODS))
        batch, node = BatchClient(agent.client(), now=world.clock.now), agent.minted(NODE)
        outcomes = await asyncio.gather(*(ask(batch, node) for _ in range(8)), return_exceptions=True)
        (first, *_) = [each for each in outcomes if isinstance(each, Unavailable)]
        assert first.retry_after is not None
        assert first.retry_after > timedelta(0)
        await batch.aclose()
        await agent.close()
