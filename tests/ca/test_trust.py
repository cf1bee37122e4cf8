"""The trust stream: news reach every agent at once, and their reports are evidence of who trusts what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias, cast

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py._proto.citadel.v1 import trust_pb2, trust_pb2_grpc
from citadel_py.ca.evidence import State
from citadel_py.ca.trust import TrustLimits
from citadel_py.ca.trust_page import trust_page
from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import build_crl
from citadel_py.core.trust import RenewalHint, Trust, TrustVersion
from citadel_py.obs.status import read_refusal
from tests.ca.support import HOUR, TD, Held, World, make_authority, until

News: TypeAlias = trust_pb2.TrustNews
Call: TypeAlias = "grpc.aio.StreamStreamCall[trust_pb2.TrustReports, News]"

CART = "spiffe://example.org/ns/shop/sa/cart"
HASH = b"\1" * 32


@asynccontextmanager
async def following(
    world: World, *, held: Held | None = None, token: str | None = None, agent: str = "node-1"
) -> AsyncIterator[Call]:
    """A stream on which the agent has said its name and that it knows no proxy."""
    async with world.channel(held or (None if token else world.mint())) as channel:
        call = follow(channel, token)
        with suppress(grpc.aio.AioRpcError):  # it may be refused already; whoever reads is told
            await call.write(trust_pb2.TrustReports(agent=agent, version="1", is_complete=True))
        yield call
        call.cancel()


def follow(channel: grpc.aio.Channel, token: str | None = None) -> Call:
    headers = (("authorization", f"Bearer {token}"),) if token else ()
    return trust_pb2_grpc.TrustServiceStub(channel).Follow(metadata=grpc.aio.Metadata(*headers))


async def read(call: Call) -> News:
    async with asyncio.timeout(10):
        news = await call.read()
    assert isinstance(news, trust_pb2.TrustNews), "the stream ended"
    return news


async def refusal_of(call: Call) -> tuple[str, str]:
    async def read_to_the_end() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(read_to_the_end(), 10)
    refusal = read_refusal(caught.value)
    return refusal.code.name, refusal.reason


def wider(world: World) -> Trust:
    """A bundle with one more authority than before."""
    bundle = world.trust.served.bundle
    root, _ = make_authority(world.clock.now())
    return Trust(bundle.with_authorities((*bundle.authorities, root.certificate)))


def report(proxy: str = "envoy-1", *, sequence: int = 1, **more: object) -> trust_pb2.ProxyReport:
    acknowledged = trust_pb2.TrustVersion(sequence=sequence, bundle_hash=HASH)
    message = trust_pb2.ProxyReport(proxy=proxy, resource="ROOTCA", acknowledged=acknowledged, streams=1)
    message.MergeFrom(trust_pb2.ProxyReport(**more))  # type: ignore[arg-type]  # fields of the message
    return message


async def test_a_stream_begins_with_the_whole_state(world: World) -> None:
    async with following(world) as call:
        trust = (await read(call)).trust

    issuer = world.engine.issuer
    assert list(trust.bundle.x509_authorities) == [issuer.root.public_bytes(Encoding.DER)]
    assert (trust.bundle.trust_domain, trust.bundle.sequence) == ("example.org", 1)
    assert trust.version.bundle_hash.hex() == issuer.bundle.content_hash
    assert (trust.version.crl_hash, list(trust.crls)) == (b"", [])
    assert (trust.authority_id, trust.serving_epoch) == (issuer.authority.id, 1)


@pytest.mark.parametrize("way", ["certificate", "web token", "join token"])
async def test_whoever_may_have_a_certificate_may_follow(world: World, way: str) -> None:
    token = {"certificate": None, "web token": world.issuer.token(), "join token": world.join_token()}[way]
    async with following(world, token=token) as call:
        assert (await read(call)).HasField("trust")


async def test_a_join_token_is_not_used_up(world: World) -> None:
    token = world.join_token()
    async with following(world, token=token) as call:
        await read(call)
    world.verified(await world.ask(token=token))


async def test_nobody_is_told_nothing(world: World) -> None:
    async with world.channel() as channel:
        assert await refusal_of(follow(channel)) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


async def test_a_change_reaches_all_streams_and_equal_content_none(world: World) -> None:
    async with following(world) as one, following(world, agent="node-2") as other:
        await asyncio.gather(read(one), read(other))
        world.trust.publish(world.trust.served, world.engine.issuer.authority.id)
        world.trust.publish(wider(world), world.engine.issuer.authority.id)
        news = await asyncio.gather(read(one), read(other))

    assert [len(each.trust.bundle.x509_authorities) for each in news] == [2, 2]
    assert news[0] == news[1]


async def test_lists_come_with_what_verifies_them(world: World) -> None:
    root, signer = make_authority(now := world.clock.now())
    crls = tuple(build_crl(each, [], number=1, now=now, next_update=now + HOUR) for each in (root, signer))
    trust = Trust(Bundle(TD, (root.certificate,), 2), crls, (signer.certificate,))
    world.trust.publish(trust, signer.id)
    async with following(world) as call:
        told = (await read(call)).trust

    assert list(told.crls) == [crl.public_bytes(Encoding.DER) for crl in crls]
    assert list(told.intermediates) == [signer.certificate.public_bytes(Encoding.DER)]
    assert told.version.crl_hash.hex() == trust.version.crl_hash
    assert told.serving_epoch == 2  # another authority signs


async def test_hints_come_to_those_who_follow_and_to_those_who_come_later(world: World) -> None:
    end = world.clock.now() + HOUR
    async with following(world) as call:
        await read(call)
        world.trust.hint(RenewalHint(7, frozenset({"ab", "cd"}), "ef", end))
        (hint,) = (await read(call)).hints
        async with following(world, agent="node-2") as later:
            assert list((await read(later)).hints) == [hint]

    assert (hint.number, list(hint.serials), hint.authority_id) == (7, ["ab", "cd"], "ef")
    assert hint.renew_before.ToDatetime() == end.replace(tzinfo=None)


async def flood(world: World, quick: Call) -> None:
    """Forty states, each of which somebody reads before the next one comes."""
    authorities = tuple(make_authority(world.clock.now())[0].certificate for _ in range(400))  # 0.2 MB in each message
    for sequence in range(2, 42):
        world.trust.publish(Trust(Bundle(TD, authorities, sequence)), "ab")
        while (await read(quick)).trust.bundle.sequence < sequence:
            pass


async def test_a_slow_reader_finds_the_newest_state_and_no_queue(world: World) -> None:
    """What the connection has taken before comes first: from there to the newest nothing waits."""
    async with following(world) as slow, following(world, agent="node-2") as quick:
        await asyncio.gather(read(slow), read(quick))
        await flood(world, quick)
        sequences = [0]
        while sequences[-1] < 41:
            sequences.append((await read(slow)).trust.bundle.sequence)

    assert sequences == sorted(sequences)
    assert len(sequences) < 40


async def test_reports_are_evidence_of_the_caller(world: World) -> None:
    async with following(world) as call:
        await read(call)
        await call.write(trust_pb2.TrustReports(reports=[report()]))
        await until(lambda: len(world.trust.evidence) == 1)
        (evidence,) = world.trust.evidence

        assert (evidence.caller, evidence.agent, evidence.report.proxy) == (CART, "node-1", "envoy-1")
        assert evidence.report.acknowledged == TrustVersion(1, HASH.hex())
        assert evidence.time == world.clock.now()
        assert world.trust.evidence.lacking(2) == [evidence]
        assert world.trust.count() == {State.BEHIND: 1}
    await until(lambda: world.trust.count() == {State.GONE: 1})


async def test_the_page_shows_problems_first_and_metrics_count_them(world: World) -> None:
    served = world.trust.served.version
    held = trust_pb2.TrustVersion(sequence=served.sequence, bundle_hash=bytes.fromhex(served.bundle_hash))
    rejected = report("envoy-2", rejected=held, reason="bad_bundle", rejections=3)
    async with following(world) as call:
        await read(call)
        current = trust_pb2.ProxyReport(proxy="envoy-1", resource="ROOTCA", acknowledged=held, streams=1)
        await call.write(trust_pb2.TrustReports(reports=[current, rejected]))
        await until(lambda: len(world.trust.evidence) == 2)

        page = trust_page(world.trust, limit=1)
        shown = world.metrics.exposition().decode()

    assert page["count"] == {"current": 1, "behind": 0, "rejected": 1, "gone": 0}
    assert (page["is_complete"], page["lacking"]) == (False, 0)
    (row,) = cast("list[dict[str, object]]", page["proxies"])
    assert (row["proxy"], row["state"], row["reason"], row["rejections"]) == ("envoy-2", "rejected", "bad_bundle", 3)
    assert 'citadel_trust_proxies{state="rejected"} 1.0' in shown
    assert "citadel_trust_streams 1.0" in shown
    assert "citadel_trust_oldest_acknowledged_sequence 1.0" in shown


BAD = {
    "proxy": report("x" * 257),
    "resource": report(resource="é" * 129),
    "reason": report(reason="Proto constraint: -----BEGIN"),
    "hash": report(rejected=trust_pb2.TrustVersion(bundle_hash=b"short")),
    "crl": report(rejected=trust_pb2.TrustVersion(bundle_hash=HASH, crl_hash=b"short")),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_report_beyond_its_bounds_ends_the_stream(world: World, bad: str) -> None:
    async with following(world) as call:
        await call.write(trust_pb2.TrustReports(reports=[BAD[bad]]))
        assert await refusal_of(call) == ("INVALID_ARGUMENT", "TRUST_REPORT")
    assert len(world.trust.evidence) == 0


async def test_an_agents_name_beyond_its_bounds_ends_the_stream(world: World) -> None:
    async with following(world, agent="x" * 129) as call:
        assert await refusal_of(call) == ("INVALID_ARGUMENT", "TRUST_REPORT")


async def test_a_stream_whose_credential_has_ended_is_ended(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = TrustLimits(recheck=timedelta(milliseconds=5))
    async with World(tmp_path, token_key, trust=limits).running() as world, following(world) as call:
        await read(call)
        world.clock.advance(3 * HOUR)
        assert await refusal_of(call) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


async def test_a_credential_that_cannot_be_checked_now_stays_good(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = TrustLimits(recheck=timedelta(milliseconds=1))
    running = World(tmp_path, token_key, trust=limits).running()
    async with running as world, following(world, token=world.issuer.token()) as call:
        await read(call)
        world.forget_jwks()
        world.turnstile.arrived.clear()
        await asyncio.wait_for(world.turnstile.arrived.wait(), 10)
        world.trust.publish(wider(world), "ab")
        assert len((await read(call)).trust.bundle.x509_authorities) == 2


async def test_there_are_so_many_streams_and_no_more(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = TrustLimits(streams=2, streams_of_one_caller=1)
    async with World(tmp_path, token_key, trust=limits).running() as world:
        async with following(world) as one:
            await read(one)
            async with following(world) as again:
                assert await refusal_of(again) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS_OF_CALLER")
            async with following(world, held=world.mint("/other")) as other:
                await read(other)
                async with following(world, held=world.mint("/third")) as third:
                    assert await refusal_of(third) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
        await until(lambda: "citadel_trust_streams 0.0" in world.metrics.exposition().decode())
        async with following(world) as call:
            await read(call)


async def test_streams_end_in_order_when_the_service_does(world: World) -> None:
    async with following(world) as call:
        await read(call)
        stopping = asyncio.create_task(world.server.stop(timedelta(seconds=30)))
        async with asyncio.timeout(10):
            assert await call.read() is grpc.aio.EOF
            await stopping
        world.server = world.listeners()  # for the end of the world
        await world.server.start("localhost:0")


async def test_a_reader_that_has_stopped_holds_up_the_end_for_its_grace_and_no_longer(world: World) -> None:
    async with following(world) as stuck, following(world, agent="node-2") as quick:
        await asyncio.gather(read(stuck), read(quick))
        await flood(world, quick)
        async with asyncio.timeout(10):
            await world.server.stop(timedelta(seconds=1))
        world.server = world.listeners()  # for the end of the world
        await world.server.start("localhost:0")


async def test_a_stream_ends_when_it_is_old(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = TrustLimits(age=timedelta(milliseconds=50))
    async with World(tmp_path, token_key, trust=limits).running() as world, following(world) as call:
        await read(call)
        assert await asyncio.wait_for(call.read(), 10) is grpc.aio.EOF
