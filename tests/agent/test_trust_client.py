"""The trust stream from the agent's end, with a real CA at the other: what comes, what goes up, and what is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.typing import EventDict

from citadel_py.agent import trust_client
from citadel_py.agent.ca_call import Door
from citadel_py.agent.trust_client import TrustClient
from citadel_py.ca.evidence import State
from citadel_py.ca.trust import TrustLimits
from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import build_crl
from citadel_py.core.errors import CitadelError, Unavailable
from citadel_py.core.keys import private_key_pem
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.trust import ProxyReport, RenewalHint, Trust
from citadel_py.obs.metrics import AgentMetrics
from tests.ca.support import HOUR, TD, World, make_authority, until


@dataclass
class Node:
    """An agent as far as trust goes."""

    world: World
    held: Trust | None = None
    took: list[Trust] = field(default_factory=list)
    kept: list[Trust] = field(default_factory=list)
    hints: list[RenewalHint] = field(default_factory=list)
    proxies: dict[str, ProxyReport] = field(default_factory=dict)
    keep_fails: bool = False
    trust_domain: TrustDomain = TD
    metrics: AgentMetrics = field(default_factory=AgentMetrics)

    doubts: list[bool] = field(default_factory=list)
    find_door: Callable[[Node], Awaitable[Door | None]] | None = None

    def __post_init__(self) -> None:
        self.identity = self.world.mint()
        self.client = TrustClient(
            self.trust_domain,
            name="node-1",
            door=self.some_door,
            held=self.held,
            keep=self.keep,
            on_trust=self.took.append,
            on_hint=self.hints.append,
            reports=self.proxies.values,
            now=self.world.clock.now,
            uniform=lambda: 0.5,
            metrics=self.metrics,
        )

    async def some_door(self, *, is_doubtful: bool) -> Door | None:
        self.doubts.append(is_doubtful)
        return await (self.find_door(self) if self.find_door else self.door())

    async def door(self) -> Door:
        roots = self.world.engine.issuer.bundle.to_pem()
        return Door(
            self.world.server.mtls_address, roots, self.identity.svid.chain_pem(), private_key_pem(self.identity.key)
        )

    def keep(self, trust: Trust) -> None:
        if self.keep_fails:
            raise Unavailable("no space left", rule="file_not_written")
        self.kept.append(trust)

    def report(self, name: str, trust: Trust | None, *, rejected: Trust | None = None) -> None:
        self.proxies[name] = ProxyReport(
            name,
            "ROOTCA",
            trust.version if trust else None,
            rejected.version if rejected else None,
            "bad_bundle" if rejected else "",
            rejections=int(rejected is not None),
        )
        self.client.reports_changed()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        task = asyncio.create_task(self.client.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_client, "_NOT_YET", timedelta(milliseconds=5))
    monkeypatch.setattr(trust_client, "_FIRST_PAUSE", timedelta(milliseconds=5))
    monkeypatch.setattr(trust_client, "_LONGEST_PAUSE", timedelta(milliseconds=50))


def publish(world: World, trust: Trust) -> None:
    world.trust.publish(trust, "ab")


def wider(world: World) -> Trust:
    bundle = world.trust.served.bundle
    root, _ = make_authority(world.clock.now())
    return Trust(bundle.with_authorities((*bundle.authorities, root.certificate)))


def states(world: World) -> Callable[[], dict[str, State]]:
    """By proxy; the agent's own is under the empty name."""
    return lambda: {each.report.proxy: each.state(world.trust.served.version) for each in world.trust.evidence}


async def test_what_the_ca_has_is_kept_served_and_reported(world: World) -> None:
    async with Node(world).running() as node:
        await until(lambda: states(world)() == {"": State.CURRENT})

    assert node.took == node.kept == [world.trust.served]


async def test_what_is_held_already_is_reported_and_is_no_news(world: World) -> None:
    async with Node(world, held=world.trust.served).running() as node:
        await until(lambda: states(world)() == {"": State.CURRENT})

    assert node.took == []


async def test_a_change_comes_at_once_and_its_acknowledgement_goes_up_at_once(world: World) -> None:
    async with Node(world, held=world.trust.served).running() as node:
        node.report("envoy", world.trust.served)
        await until(lambda: states(world)() == {"": State.CURRENT, "envoy": State.CURRENT})
        news = wider(world)
        started = time.perf_counter()
        publish(world, news)
        await until(lambda: node.took == [news])
        assert states(world)()["envoy"] is State.BEHIND
        node.report("envoy", news)
        await until(lambda: states(world)()["envoy"] is State.CURRENT)
        took_s = time.perf_counter() - started

    assert world.trust.evidence.lacking(2) == []
    assert took_s < 5  # milliseconds, were the machine ours


async def test_a_proxy_that_rejects_is_listed_and_one_that_is_gone_is_marked(world: World) -> None:
    async with Node(world).running() as node:
        node.report("good", world.trust.served)
        node.report("bad", None, rejected=world.trust.served)
        await until(lambda: states(world)() == {"": State.CURRENT, "good": State.CURRENT, "bad": State.REJECTED})
        del node.proxies["good"]
        node.client.reports_changed()
        await until(lambda: states(world)()["good"] is State.GONE)


async def test_a_bundle_that_goes_back_is_refused_and_told_on_both_sides(world: World, log: list[EventDict]) -> None:
    held = wider(world)
    async with Node(world, held=held).running() as node:
        await until(lambda: states(world)() == {"": State.REJECTED})
        (evidence,) = world.trust.evidence

    assert node.took == []
    assert (evidence.report.reason, evidence.report.acknowledged) == ("trust_sequence_back", held.version)
    assert evidence.report.rejected == world.trust.served.version
    assert node.client.problem is not None
    assert [each["rule"] for each in log if each["event"] == "trust.refused"] == ["trust_sequence_back"]


async def test_another_trust_domains_bundle_is_refused(world: World) -> None:
    async with Node(world, trust_domain=TrustDomain("other.org")).running() as node:
        await until(lambda: states(world)() == {"": State.REJECTED})

    assert node.took == []
    assert "other.org" in str(node.client.problem)


async def test_after_a_refusal_good_news_are_taken(world: World) -> None:
    held = wider(world)
    async with Node(world, held=held).running() as node:
        await until(lambda: states(world)() == {"": State.REJECTED})
        publish(world, Trust(replace(wider(world).bundle, sequence=9)))
        await until(lambda: states(world)() == {"": State.CURRENT})

    assert node.client.problem is None
    assert [each.bundle.sequence for each in node.took] == [9]


async def test_lists_come_within_a_moment_and_go_before_they_end(world: World) -> None:
    root, signer = make_authority(now := world.clock.now())
    crls = tuple(build_crl(each, [], number=1, now=now, next_update=now + HOUR) for each in (root, signer))
    async with Node(world).running() as node:
        await until(lambda: bool(node.took))
        bundle = world.trust.served.bundle
        authorities = (*bundle.authorities, root.certificate)
        publish(world, Trust(bundle.with_authorities(authorities), crls, (signer.certificate,)))
        await until(lambda: len(node.took) == 2)
        assert node.took[-1].crls == ()  # the first root has none: so nobody has

        alone = Trust(Bundle(TD, (root.certificate,), 3), crls, (signer.certificate,))
        publish(world, alone)
        await until(lambda: node.took[-1] == alone)
        world.clock.advance(HOUR)
        await node.client.judge()

    assert (node.took[-1].bundle, node.took[-1].crls) == (alone.bundle, ())
    assert node.kept == node.took


async def test_a_full_disk_keeps_nothing_from_being_served(world: World, log: list[EventDict]) -> None:
    async with Node(world, keep_fails=True).running() as node:
        await until(lambda: bool(node.took))

    assert [each["rule"] for each in log if each["event"] == "trust.not_kept"] == ["file_not_written"]


async def test_hints_are_followed_once_also_over_a_new_stream(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    limits = TrustLimits(age=timedelta(milliseconds=100))
    async with World(tmp_path, token_key, trust=limits).running() as world:
        world.trust.hint(RenewalHint(1, frozenset({"ab"})))
        async with Node(world).running() as node:
            ended = 'citadel_rpc_duration_seconds_count{code="OK",method="/citadel.v1.TrustService/Follow"}'
            await until(lambda: ended in world.metrics.exposition().decode() and node.hints != [])
            world.trust.hint(RenewalHint(2, frozenset({"cd"})))
            await until(lambda: len(node.hints) == 2)

    assert [each.number for each in node.hints] == [1, 2]


async def test_a_ca_that_restarts_loses_nothing(world: World) -> None:
    async with Node(world).running() as node:
        node.report("envoy", world.trust.served)
        await until(lambda: states(world)() == {"": State.CURRENT, "envoy": State.CURRENT})
        address, mtls = world.server.address, world.server.mtls_address
        await world.server.stop(timedelta(0))
        world.trust = world.new_trust()  # another process: nothing is remembered
        assert len(world.trust.evidence) == 0
        publish(world, news := Trust(replace(wider_of(world), sequence=7)))
        world.server = world.listeners()
        await world.server.start(address, mtls)
        await until(lambda: node.took[-1] == news)
        await until(lambda: states(world)() == {"": State.CURRENT, "envoy": State.BEHIND})


def wider_of(world: World) -> Bundle:
    bundle = world.engine.issuer.bundle
    root, _ = make_authority(world.clock.now())
    return bundle.with_authorities((*bundle.authorities, root.certificate))


async def test_while_the_door_is_not_known_it_tries_again(world: World, log: list[EventDict]) -> None:
    tries: list[int] = []

    async def door(node: Node) -> Door:
        tries.append(1)
        if len(tries) < 3:
            raise CitadelError("no certificate yet", rule="not_ready")
        return await node.door()

    async with Node(world, find_door=door).running() as node:
        await until(lambda: bool(node.took))

    assert node.doubts == [False, True, True]
    assert len([each for each in log if each["event"] == "trust.disconnected" and each["log_level"] == "warning"]) == 1


async def test_until_there_is_a_certificate_it_waits_in_silence(world: World, log: list[EventDict]) -> None:
    async def door(node: Node) -> Door | None:
        return await node.door() if len(node.doubts) > 2 else None

    async with Node(world, find_door=door).running() as node:
        await until(lambda: bool(node.took))

    assert [each for each in log if each["event"] == "trust.disconnected"] == []


async def test_a_mistake_in_reports_ends_the_client_and_is_not_hidden(world: World) -> None:
    node = Node(world)
    node.proxies["bad"] = ProxyReport("bad", "ROOTCA", rejections=-1)

    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(node.client.run(), 10)
    assert caught.group_contains(ValueError)


async def test_an_older_ca_is_asked_rarely_and_in_silence(world: World, log: list[EventDict]) -> None:
    older = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = older.add_secure_port("localhost:0", world.serving.credentials(require_client_certificate=True))
    await older.start()

    tries: list[int] = []

    async def door(node: Node) -> Door:
        tries.append(1)
        return replace(await node.door(), address=f"localhost:{port}")

    try:
        async with Node(world, find_door=door).running():
            await until(lambda: any(each["event"] == "trust.disconnected" for each in log))
            async with Node(world).running() as other:  # takes longer than the pause after a failure
                await until(lambda: bool(other.took))
    finally:
        await older.stop(None)

    assert len(tries) == 1
    assert [each["log_level"] for each in log if each["event"] == "trust.disconnected"] == ["debug"]


async def test_two_thousand_proxies_are_reported_in_one_snapshot(world: World) -> None:
    node = Node(world)
    for number in range(2000):
        node.report(f"envoy-{number}", world.trust.served)
    async with node.running():
        await until(lambda: world.trust.count().get(State.CURRENT) == 2001)
