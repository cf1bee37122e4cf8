"""Who asks for whom: the node for itself, and then for the others, as long as the CA lets it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import structlog

from citadel_py.agent.batch_stream import BatchNotOffered
from citadel_py.app import agent_source
from citadel_py.app.agent_source import NodeSource
from citadel_py.core.errors import CitadelError, PermissionDenied, Unavailable
from citadel_py.core.ports import HeldSVID, SignedReply
from citadel_py.core.spiffe import SpiffeID
from tests.ca.support import make_engine, mint

NODE, WEB = SpiffeID.parse("spiffe://example.org/node"), SpiffeID.parse("spiffe://example.org/web")
NOW = datetime.now(UTC).replace(microsecond=0)
ENGINE = make_engine(NOW)


def held_by(id: SpiffeID, *, begin: datetime = NOW) -> HeldSVID:
    made = mint(ENGINE, id.path, now=begin, ttl=timedelta(minutes=30))
    return HeldSVID(made.svid, made.key, ENGINE.issuer.bundle, begin, begin)


class Recording:
    """Either way to the CA; it says who asked for whom, by whose SVID."""

    def __init__(self) -> None:
        self.asked: list[tuple[SpiffeID, SpiffeID | None]] = []
        self.error: CitadelError | None = None

    async def sign(self, _csr: bytes, *, id: SpiffeID, ttl: timedelta | None, **by: HeldSVID | None) -> SignedReply:
        assert ttl == timedelta(hours=1)
        (held,) = by.values()
        self.asked.append((id, held.svid.id if held else None))
        if self.error:
            raise self.error
        return SignedReply(held_by(id).svid, ENGINE.issuer.bundle)

    async def aclose(self) -> None:
        pass


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alone, self.batch = Recording(), Recording()
        self.node: HeldSVID | None = held_by(NODE)
        monkeypatch.setattr(agent_source, "BatchClient", lambda *_parts, **_options: self.batch)
        self.source = NodeSource(self.alone, NODE, lambda id: self.node if id == NODE else None)  # type: ignore[arg-type]

    async def ask(self, id: SpiffeID, held: HeldSVID | None = None) -> SignedReply:
        return await self.source.sign(b"", id=id, ttl=timedelta(hours=1), held=held)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def test_the_node_has_its_certificate_as_any_agent(world: World) -> None:
    await world.ask(NODE, world.node)
    assert (world.alone.asked, world.batch.asked) == ([(NODE, NODE)], [])


async def test_others_are_asked_for_by_the_nodes_certificate_and_not_by_their_own(world: World) -> None:
    await world.ask(WEB, held_by(WEB))
    assert (world.alone.asked, world.batch.asked) == ([], [(WEB, NODE)])


@pytest.mark.parametrize("begin", [None, NOW - timedelta(minutes=50)])
async def test_without_a_valid_certificate_of_the_node_nobody_is_asked(world: World, begin: datetime | None) -> None:
    world.node = held_by(NODE, begin=begin) if begin else None
    with pytest.raises(Unavailable) as caught:
        await world.ask(WEB)
    assert caught.value.rule == "no_voucher"
    assert (world.alone.asked, world.batch.asked) == ([], [])


async def test_where_there_is_no_batch_api_each_asks_for_itself_and_that_is_told_once(world: World) -> None:
    world.batch.error = BatchNotOffered("none")
    with structlog.testing.capture_logs() as log:
        for _ in range(3):
            await world.ask(WEB, held_by(WEB))
        world.batch.error = None
        await world.ask(WEB, held_by(WEB))
        world.batch.error = BatchNotOffered("none")
        await world.ask(WEB)
    assert world.alone.asked == [*[(WEB, WEB)] * 3, (WEB, None)]
    assert [line["event"] for line in log] == ["batch.not_offered"] * 2


async def test_a_refusal_is_no_reason_to_ask_in_another_way(world: World) -> None:
    world.batch.error = PermissionDenied("no")
    with pytest.raises(PermissionDenied):
        await world.ask(WEB, held_by(WEB))
    assert world.alone.asked == []
