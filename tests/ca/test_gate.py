"""Floods against a real service: whoever behaves gets certificates, and memory stays bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from citadel_py.ca.gate import Gate
from citadel_py.core.admission import AdmissionLimits, Ask, Peer, Priority
from citadel_py.core.errors import LedgerUnavailable, LimitReached, Unavailable
from citadel_py.core.rates import Rate
from citadel_py.obs.metrics import CAMetrics
from citadel_py.obs.peers import peer_of
from citadel_py.obs.rpc import PUSHBACK_KEY
from citadel_py.obs.status import Refusal, read_refusal
from tests.ca.support import HOUR, UNLIMITED, Clock, World, call, new_csr, until

DEFAULT = AdmissionLimits()
CSR = new_csr()


@asynccontextmanager
async def limited(folder: Path, key: rsa.RSAPrivateKey, limits: AdmissionLimits) -> AsyncIterator[World]:
    async with World(folder, key, admission=limits).running() as world:
        yield world


async def refusal(channel: grpc.aio.Channel, token: str) -> tuple[Refusal, str]:
    """What a refused call says, and the pushback in its metadata."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, token=token, csr=CSR)
    return read_refusal(caught.value), str(dict(caught.value.trailing_metadata() or ()).get(PUSHBACK_KEY, ""))


def subject(name: str) -> str:
    return f"system:serviceaccount:shop:{name}"


async def loop_until(over: asyncio.Event, channel: grpc.aio.Channel, token: str, codes: Counter[str]) -> None:
    """A client that never waits."""
    while not over.is_set():
        try:
            await call(channel, token=token, csr=CSR)
            codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            codes[read_refusal(error).reason] += 1


async def test_one_client_that_loops_keeps_nobody_from_getting_certificates(
    tmp_path: Path, token_key: rsa.RSAPrivateKey
) -> None:
    async with limited(tmp_path, token_key, replace(DEFAULT, identity=Rate(10, HOUR))) as world:
        over, codes = asyncio.Event(), Counter[str]()
        async with world.channel() as loops, world.channel() as behaves:
            token = world.issuer.token(sub=subject("loop"))
            looping = [asyncio.create_task(loop_until(over, loops, token, codes)) for _ in range(8)]
            await until(lambda: codes["TOO_MANY_CERTIFICATES"] > 20)
            for number in range(30):
                await call(behaves, token=world.issuer.token(sub=subject(f"good-{number}")), csr=CSR, timeout=5)
            over.set()
            await asyncio.gather(*looping)
        callers = Counter(entry.caller for entry in world.issued())
    assert callers.pop(subject("loop")) == codes["OK"] == 10
    assert set(callers.values()) == {1}
    assert len(callers) == 30


async def test_a_flood_of_bad_tokens_keeps_nobody_from_getting_certificates(
    tmp_path: Path, token_key: rsa.RSAPrivateKey
) -> None:
    """All from one address: the connections that fail use up their own share, not that of their address."""
    async with limited(tmp_path, token_key, DEFAULT) as world:
        over, codes = asyncio.Event(), Counter[str]()
        bad = world.issuer.token(aud="somebody else")
        async with world.channel() as floods, world.channel() as behaves, world.channel(world.mint()) as renews:
            flood = [asyncio.create_task(loop_until(over, floods, bad, codes)) for _ in range(8)]
            await until(lambda: codes["TOO_MANY_FAILURES"] > 50)
            for number in range(20):
                await call(behaves, token=world.issuer.token(sub=subject(f"good-{number}")), csr=CSR, timeout=5)
            await call(renews, csr=CSR, timeout=5)
            over.set()
            await asyncio.gather(*flood)
        assert codes["UNAUTHENTICATED"] == DEFAULT.connection_failures.count
        assert len(world.issued()) == 21


async def test_a_caller_that_cannot_be_authenticated_is_not_even_looked_at_after_a_while(
    tmp_path: Path, token_key: rsa.RSAPrivateKey
) -> None:
    async with limited(tmp_path, token_key, replace(UNLIMITED, connection_failures=Rate(1, HOUR))) as world:
        async with world.channel() as channel:
            assert (await refusal(channel, "nonsense"))[0].code is grpc.StatusCode.UNAUTHENTICATED
            world.turnstile.arrived.clear()
            told, pushback = await refusal(channel, "nonsense")
        assert (told.code.name, told.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_FAILURES")
        assert told.retry_after is not None
        assert timedelta(minutes=59) < told.retry_after <= timedelta(minutes=90)
        assert int(pushback) == told.retry_after // timedelta(milliseconds=1)
        assert not world.turnstile.arrived.is_set()


async def test_failures_of_neighbours_are_not_held_against_whoever_shows_a_certificate(
    tmp_path: Path, token_key: rsa.RSAPrivateKey
) -> None:
    async with limited(tmp_path, token_key, replace(UNLIMITED, address_failures=Rate(1, HOUR))) as world:
        async with world.channel() as channel:
            await refusal(channel, "nonsense")
            assert (await refusal(channel, world.issuer.token()))[0].reason == "TOO_MANY_FAILURES"
        await world.ask(held=world.mint())


async def test_a_caller_beyond_its_share_is_told_when_to_come_back_and_is_served_then(
    tmp_path: Path, token_key: rsa.RSAPrivateKey
) -> None:
    limits = replace(UNLIMITED, identity=Rate(1, timedelta(minutes=5)))
    async with limited(tmp_path, token_key, limits) as world, world.channel() as channel:
        await call(channel, token=world.issuer.token())
        told, pushback = await refusal(channel, world.issuer.token())
        assert (told.code.name, told.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CERTIFICATES")
        assert told.retry_after is not None
        assert pushback
        world.clock.advance(told.retry_after)
        await call(channel, token=world.issuer.token())


async def test_what_the_ledger_could_not_record_does_not_count(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = replace(UNLIMITED, identity=Rate(1, HOUR))
    async with limited(tmp_path, token_key, limits) as world, world.channel() as channel:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.ledger, "append", disk_full)
            for _ in range(3):
                assert (await refusal(channel, world.issuer.token()))[0].reason == "LEDGER_UNAVAILABLE"
        await call(channel, token=world.issuer.token())


def disk_full(_entries: object) -> None:
    raise LedgerUnavailable("no space left")


async def test_a_storm_is_served_as_far_as_there_is_room_and_the_rest_comes_back_spread_over_time(
    tmp_path: Path, token_key: rsa.RSAPrivateKey
) -> None:
    async with limited(tmp_path, token_key, replace(UNLIMITED, places=1, waiting=4)) as world:
        token, delays, served = world.issuer.token(), list[timedelta](), 0
        async with world.channel() as channel:
            for pending in [call(channel, token=token, csr=CSR) for _ in range(200)]:
                try:
                    await pending
                    served += 1
                except grpc.aio.AioRpcError as error:
                    told = read_refusal(error)
                    assert (told.code.name, told.reason) == ("UNAVAILABLE", "QUEUE_FULL")
                    assert told.retry_after is not None
                    delays.append(told.retry_after)
        assert served == len(world.issued())
    assert len(delays) == 200 - served > 20
    assert len(set(delays)) > len(delays) // 2


async def test_what_a_caller_shows_says_how_pressing_it_is(world: World) -> None:
    def waited(priority: str) -> int:
        return int(sample(world.metrics, "citadel_admission_wait_seconds_count", priority=priority) or 0)

    held = world.mint(ttl=2 * HOUR)
    await world.ask(token=world.issuer.token())
    assert (waited("first_issue"), waited("near_expiry"), waited("early_renewal")) == (1, 0, 0)
    await world.ask(held=held)
    assert (waited("first_issue"), waited("near_expiry"), waited("early_renewal")) == (1, 0, 1)
    with pytest.raises(grpc.aio.AioRpcError):  # for another one, of which its own certificate says nothing
        await world.ask(held=held, wishes={"ImpersonatedIdentity": "spiffe://example.org/other"})
    assert (waited("first_issue"), waited("near_expiry"), waited("early_renewal")) == (1, 1, 1)
    world.clock.advance(1.5 * HOUR)
    await world.ask(held=held)
    assert (waited("first_issue"), waited("near_expiry"), waited("early_renewal")) == (1, 2, 1)


async def test_an_answer_says_when_to_renew(world: World) -> None:
    async with world.channel() as channel:
        pending = call(channel, token=world.issuer.token(), validity=7200)
        await pending
        told = dict(await pending.trailing_metadata())["citadel-renew-at"]
    assert isinstance(told, str)
    part = (datetime.strptime(told, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) - world.clock.now()) / (2 * HOUR)
    assert 0.5 <= part <= 0.66


# --- the gate by itself


def make_gate(limits: AdmissionLimits = UNLIMITED) -> tuple[Gate, CAMetrics]:
    metrics = CAMetrics()
    return Gate(limits, now=Clock().now, metrics=metrics), metrics


def ask(number: int, priority: Priority = Priority.FIRST_ISSUE) -> Ask:
    return Ask("caller", f"id {number}", Peer("connection", "address"), priority)


def sample(metrics: CAMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_who_waits_goes_on_when_another_has_left_the_more_pressing_first() -> None:
    gate, metrics = make_gate(replace(UNLIMITED, places=1))
    release, order = asyncio.Event(), list[int]()

    async def work(number: int, priority: Priority) -> None:
        async with gate.one(ask(number, priority)):
            order.append(number)
            await release.wait()

    async with asyncio.TaskGroup() as works:
        for number, priority in enumerate((Priority.NEAR_EXPIRY, Priority.EARLY_RENEWAL, Priority.FIRST_ISSUE)):
            works.create_task(work(number, priority))
        await until(lambda: sample(metrics, "citadel_admission_waiting") == 2)
        assert sample(metrics, "citadel_admission_in_works") == 1
        release.set()
    assert order == [0, 2, 1]
    assert sample(metrics, "citadel_admission_wait_seconds_count", priority="first_issue") == 1


async def test_who_goes_away_while_it_waits_leaves_its_place_to_others() -> None:
    gate, metrics = make_gate(replace(UNLIMITED, places=1, waiting=1))
    async with gate.one(ask(0)):
        waiting = asyncio.create_task(gate.one(ask(1)).__aenter__())
        await until(lambda: sample(metrics, "citadel_admission_waiting") == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert sample(metrics, "citadel_admission_waiting") == 0
    async with gate.one(ask(2)):
        pass


async def test_who_is_displaced_is_told_so() -> None:
    gate, metrics = make_gate(replace(UNLIMITED, places=1, waiting=1))
    async with gate.one(ask(0)):
        waiting = asyncio.create_task(gate.one(ask(1, Priority.EARLY_RENEWAL)).__aenter__())
        await until(lambda: sample(metrics, "citadel_admission_waiting") == 1)
        pressing = asyncio.create_task(gate.one(ask(2)).__aenter__())
        with pytest.raises(Unavailable) as caught:
            await waiting
        assert caught.value.rule == "queue_full"
    await pressing
    assert sample(metrics, "citadel_admission_refusals_total", reason="queue_full") == 1


async def test_who_has_no_time_at_all_is_refused_at_once() -> None:
    gate, _ = make_gate()
    with pytest.raises(Unavailable) as caught:
        await gate.one(replace(ask(0), patience=timedelta(0))).__aenter__()
    assert caught.value.rule == "waited_too_long"


async def test_beyond_the_overall_pace_requests_wait_and_are_served() -> None:
    clock = Clock()
    gate = Gate(replace(UNLIMITED, overall=Rate(1, timedelta(milliseconds=20))), now=clock.now, metrics=CAMetrics())

    async def work(number: int) -> None:
        async with gate.one(ask(number)):
            pass

    async with asyncio.TaskGroup() as works:
        tasks = [works.create_task(work(number)) for number in range(3)]
        for served in range(1, 4):
            await until(lambda served=served: sum(task.done() for task in tasks) == served)  # type: ignore[misc]
            clock.advance(timedelta(milliseconds=20))


async def test_refusals_are_counted_by_rule() -> None:
    gate, metrics = make_gate(replace(UNLIMITED, same_at_once=1))
    async with gate.one(ask(0)):
        with pytest.raises(LimitReached):
            await gate.one(ask(0)).__aenter__()
    assert sample(metrics, "citadel_admission_refusals_total", reason="duplicate_request") == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ipv4:192.0.2.1:4242", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4242", "2001:db8:1:2::/64"),
        ("ipv6:[::1]:4242", "::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:4242", "192.0.2.1"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("", ""),
    ],
)
def test_the_address_of_a_peer_is_its_host_of_ipv6_its_network(text: str, address: str) -> None:
    assert peer_of(text) == Peer(text, address)
