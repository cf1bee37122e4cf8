"""The client against a real service: which credential it uses, and what it does when one fails."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.typing import EventDict

from citadel_py.agent.ca_client import CAAddress
from citadel_py.core.csr import create_csr
from citadel_py.core.errors import (
    CitadelError,
    InvalidConfiguration,
    Unauthenticated,
    Unavailable,
)
from citadel_py.core.keys import KeyType, generate_key, same_public_key
from tests.agent.support import CART, ID, Agent
from tests.ca.support import HOUR, World, make_engine, mint

NOT_THERE = InvalidConfiguration("cannot read the file", rule="file_missing")


async def failure(agent: Agent, *args: object, **options: object) -> CitadelError:
    with pytest.raises(CitadelError) as failed:
        await agent.ask(*args, **options)  # type: ignore[arg-type]  # as each test has it
    return failed.value


def calls(log: list[EventDict]) -> list[str]:
    """How each call ended that reached the service."""
    return [str(line["code"]) for line in log if line["event"] == "rpc.finished"]


# --- the first certificate


async def test_a_join_token_gives_the_first_certificate(agent: Agent, world: World) -> None:
    agent.token = world.join_token().encode()
    held = await agent.ask()
    assert held.svid.id == ID
    assert same_public_key(held.svid.leaf.public_key(), held.key.public_key())  # type: ignore[arg-type]
    assert held.bundle == world.engine.issuer.bundle
    assert agent.methods() == ["join_token"]


async def test_a_json_web_token_gives_the_first_certificate(agent: Agent, world: World) -> None:
    agent.token = b"  " + world.issuer.token().encode() + b"\r\n"
    assert (await agent.ask(id=CART)).svid.id == CART
    assert agent.methods() == ["jwt"]


async def test_the_lifetime_that_is_asked_for_is_given(agent: Agent, world: World) -> None:
    agent.token = world.join_token().encode()
    held = await agent.ask(ttl=timedelta(minutes=7))
    assert held.svid.not_after == world.clock.now() + timedelta(minutes=7)


async def test_it_is_told_when_to_renew(agent: Agent, world: World) -> None:
    agent.token = world.join_token().encode()
    reply = await agent.client().sign(create_csr(generate_key(KeyType.P256)), id=ID, ttl=2 * HOUR, held=None)
    now = world.clock.now()
    assert reply.renew_at is not None
    assert now + HOUR <= reply.renew_at <= now + 0.66 * 2 * HOUR


async def test_every_answer_tells_where_certificates_are_taken(agent: Agent, world: World) -> None:
    agent.token = world.join_token().encode()
    await agent.ask()
    assert agent.learned == [agent.mtls_port]
    agent.learned.clear()
    await failure(agent)
    assert agent.learned == [agent.mtls_port]


async def test_the_token_is_read_anew_for_each_attempt(agent: Agent, world: World) -> None:
    agent.token = NOT_THERE
    client = agent.client()
    await failure(agent, client=client)
    agent.token = world.join_token().encode()
    assert (await agent.ask(client=client)).svid.id == ID


async def test_the_roots_are_read_anew_for_each_attempt(agent: Agent, world: World) -> None:
    agent.token, right = world.join_token().encode(), agent.roots
    agent.roots = make_engine(world.clock.now()).issuer.bundle.to_pem()
    client = agent.client()
    assert isinstance(await failure(agent, client=client), Unavailable)
    agent.roots = right
    assert (await agent.ask(client=client)).svid.id == ID


# --- renewals


async def test_a_renewal_shows_the_certificate_and_uses_no_token(agent: Agent, world: World) -> None:
    agent.token = world.join_token().encode()
    first = await agent.ask()
    agent.token = NOT_THERE
    second = await agent.ask(first)
    third = await agent.ask(second)
    assert third.svid.id == ID
    assert agent.methods() == ["join_token", "mtls", "mtls"]


async def test_the_certificate_comes_before_a_token_that_would_do(agent: Agent, world: World) -> None:
    agent.token = world.issuer.token().encode()
    await agent.ask(await agent.ask(id=CART), id=CART)
    assert agent.methods() == ["jwt", "mtls"]


async def test_what_was_learned_is_kept_once(agent: Agent, world: World) -> None:
    agent.token = world.issuer.token().encode()
    for client in (agent.client(), None):
        await agent.ask(id=CART, client=client)
        await agent.ask(id=CART, client=client)
    assert agent.learned == [agent.mtls_port]


async def test_the_configured_address_for_certificates_is_used(agent: Agent, world: World) -> None:
    agent.mtls = world.server.mtls_address
    agent.address = None
    assert (await agent.ask(agent.minted())).svid.id == ID
    assert agent.methods() == ["mtls"]


async def test_without_a_token_the_address_for_certificates_is_asked_for(agent: Agent) -> None:
    """A machine whose one-time token is used up, after its state of what it learned was lost."""
    held = await agent.ask(agent.minted())
    assert held.svid.id == ID
    assert agent.learned == [agent.mtls_port]
    assert agent.methods() == ["mtls"]


async def test_an_address_that_is_no_longer_right_is_learned_anew(agent: Agent) -> None:
    agent.learned = [1]
    assert (await agent.ask(agent.minted())).svid.id == ID
    assert agent.learned == [1, agent.mtls_port]


async def test_a_certificate_that_is_refused_is_followed_by_the_token(agent: Agent, world: World) -> None:
    agent.token, agent.learned = world.join_token().encode(), [agent.mtls_port]
    stranger = mint(make_engine(world.clock.now()), "/machine/one", now=world.clock.now())
    held = replace(agent.minted(), svid=stranger.svid, key=stranger.key)
    assert (await agent.ask(held)).svid.id == ID
    assert agent.methods() == ["join_token"]


async def test_a_token_that_is_refused_is_followed_by_the_certificate(agent: Agent, world: World) -> None:
    """Nothing was learned yet, so the token comes first."""
    agent.token = world.issuer.token(exp=1).encode()
    assert (await agent.ask(agent.minted())).svid.id == ID
    assert agent.methods() == ["mtls"]


async def test_an_expired_certificate_is_not_shown(agent: Agent, world: World, log: list[EventDict]) -> None:
    agent.learned, agent.token = [agent.mtls_port], world.join_token().encode()
    held = agent.minted(ttl=timedelta(minutes=1))
    world.clock.advance(timedelta(minutes=2))
    await agent.ask(held)
    assert calls(log) == ["OK"]


async def test_the_bundle_that_the_service_told_of_verifies_it_when_the_file_does_not(
    agent: Agent, world: World
) -> None:
    agent.token = world.join_token().encode()
    first = await agent.ask()
    agent.roots = NOT_THERE
    second = await agent.ask(first)
    agent.roots = make_engine(world.clock.now()).issuer.bundle.to_pem()
    assert (await agent.ask(second)).svid.id == ID


# --- when nothing works


async def test_without_certificate_and_token_nobody_is_asked(agent: Agent) -> None:
    error = await failure(agent)
    assert (type(error), error.rule) == (Unauthenticated, "no_credential")
    assert "token create" in error.hints[0]
    assert agent.learned == []
    with pytest.raises(Unauthenticated):
        await agent.client().check()


async def test_the_check_before_the_start_asks_nobody(agent: Agent, world: World) -> None:
    agent.token = world.join_token().encode()
    await world.server.stop(timedelta(0))
    await agent.client().check()
    agent.roots = NOT_THERE
    with pytest.raises(InvalidConfiguration):
        await agent.client().check()


async def test_a_service_that_is_away_is_told_of_with_its_address_and_may_come_back(agent: Agent, world: World) -> None:
    agent.token = world.join_token().encode()
    held = await agent.ask()
    await world.server.stop(timedelta(0))
    error = await failure(agent, held)
    assert isinstance(error, Unavailable)
    assert world.server.address in error.message
    assert world.server.mtls_address in error.message


async def test_without_a_token_too_a_service_that_is_away_is_told_of(agent: Agent, world: World) -> None:
    held = agent.minted()
    await world.server.stop(timedelta(0))
    error = await failure(agent, held)
    assert isinstance(error, Unavailable)
    assert error.message.startswith("asking where certificates are taken: UNAVAILABLE")


async def test_a_service_that_never_answers_is_given_up(agent: Agent, world: World) -> None:
    agent.token, agent.deadline = world.join_token().encode(), timedelta(milliseconds=200)
    world.turnstile.open.clear()
    error = await failure(agent)
    world.turnstile.open.set()
    assert isinstance(error, Unavailable)
    assert "DEADLINE_EXCEEDED" in error.message


async def test_a_refusal_carries_the_services_reason_and_request_id(agent: Agent, world: World) -> None:
    agent.token = world.join_token().encode()
    error = await failure(agent, ttl=1000 * 24 * HOUR)
    assert error.rule == "lifetime_above_maximum"
    assert "above the maximum" in error.message
    assert "request id" in error.message


async def test_a_refusal_that_no_port_can_cure_ends_the_attempt(agent: Agent, log: list[EventDict]) -> None:
    agent.learned = [agent.mtls_port]
    error = await failure(agent, agent.minted("/machine/two"))
    assert error.rule == "csr_san_not_granted"
    assert calls(log) == ["INVALID_ARGUMENT"]


async def test_asking_for_the_port_is_no_failure(agent: Agent, log: list[EventDict]) -> None:
    error = await failure(agent, agent.minted("/machine/two"))
    assert error.rule == "csr_san_not_granted"
    assert calls(log) == ["UNAUTHENTICATED", "INVALID_ARGUMENT"]
    assert "asking" not in error.message


async def test_what_may_pass_counts_more_than_what_will_not(agent: Agent) -> None:
    """So that it is told as something to wait for, with the other reason beside it."""
    agent.token, agent.mtls = b"citadel-join-nonsense", "localhost:1"
    error = await failure(agent, agent.minted())
    assert isinstance(error, Unavailable)
    assert "by certificate: the CA at localhost:1 UNAVAILABLE" in error.message
    assert "by token: the CA at localhost" in error.message
    assert "UNAUTHENTICATED" in error.message


async def test_what_may_pass_counts_more_also_when_it_comes_later(agent: Agent) -> None:
    agent.token, agent.learned = Unavailable("the disk is away"), [agent.mtls_port]
    error = await failure(agent, agent.minted("/machine/two"))
    assert isinstance(error, Unavailable)
    assert error.message.endswith("by token: the disk is away")


@pytest.mark.parametrize("token", [b"", b" \n", b"two\nlines", "\N{SNOWMAN}".encode(), b"x" * 20_000, b"a\0b"])
async def test_a_token_file_with_something_else_in_it_is_not_sent(agent: Agent, token: bytes) -> None:
    agent.token = token
    error = await failure(agent)
    assert error.rule == "token_file_content"
    assert agent.learned == []


async def test_neither_errors_nor_logs_hold_the_token(agent: Agent, log: list[EventDict]) -> None:
    agent.token = b"citadel-join-" + b"s3cret" * 7
    error = await failure(agent)
    assert b"s3cret" not in repr((error, error.hints, log)).encode()


def test_an_ipv6_host_is_written_in_brackets() -> None:
    assert CAAddress("::1", 15012).for_tokens == "[::1]:15012"
    assert CAAddress("ca.example.org", 15012).at(7) == "ca.example.org:7"


async def test_what_came_over_the_trust_stream_verifies_the_service_too(world: World, agent: Agent) -> None:
    agent.roots, agent.token = make_engine(world.clock.now()).issuer.bundle.to_pem(), world.join_token(ID.path).encode()
    client = agent.client()
    with pytest.raises(Unavailable):
        await agent.ask(client=client)

    client.trust(world.engine.issuer.bundle)
    assert (await agent.ask(client=client)).svid.id == ID
