"""Agents and real Envoys: whatever happens to agents, CA and secrets, no request fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import structlog
from structlog.typing import EventDict

from citadel_py.app import agent as agent_module
from citadel_py.config import AgentSettings, parse_address
from citadel_py.core.spiffe import SpiffeID
from demo_parts.children import Children
from demo_parts.envoys import EnvoyStarter
from demo_parts.load import Load
from demo_parts.mesh import Mesh
from demo_parts.wire import Side, leaves
from tests.app.agent_support import RunningAgent, running, settings_of
from tests.app.serve_support import join_token, write_authority
from tests.envoy.support import CLIENT, SERVER, Pair, start_client, start_server

IDS = {Side.SERVER: SERVER, Side.CLIENT: CLIENT}


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "configure", lambda *_: None)


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events


@dataclass
class Scene:
    """Two agents, which can be stopped and started, and later two Envoys on their sockets."""

    place: Path
    children: Children
    log: list[EventDict]
    source: dict[Side, dict[str, object]]
    agents: dict[Side, RunningAgent] = field(default_factory=dict)
    seen: dict[Side, list[str]] = field(default_factory=lambda: {side: [] for side in Side})
    _lives: dict[Side, AsyncExitStack] = field(default_factory=dict)

    def settings(self, side: Side) -> AgentSettings:
        return settings_of(self.place / side, id=IDS[side], **self.source[side])

    async def start(self, side: Side) -> None:
        stack = AsyncExitStack()
        self.agents[side] = await stack.enter_async_context(running(self.settings(side), self.log))
        self._lives[side] = stack

    async def stop(self, side: Side) -> None:
        await self._lives.pop(side).aclose()

    async def stop_all(self) -> None:
        for side in list(self._lives):
            await self.stop(side)

    async def envoys(self, starter: EnvoyStarter) -> Pair:
        server, port = await start_server(starter, self.agents[Side.SERVER].socket)
        client, url = await start_client(starter, self.agents[Side.CLIENT].socket, port)
        return Pair(server, client, port, url)

    def note(self, headers: Mapping[str, str]) -> None:
        """Which serial numbers were on the wire, in their order."""
        for side, leaf in leaves(headers).items():
            if leaf.serial not in self.seen[side]:
                self.seen[side].append(leaf.serial)

    async def sees(self, count: int) -> None:
        """Wait until each side has presented so many certificates."""

        async def is_so() -> bool:
            return all(len(serials) >= count for serials in self.seen.values())

        await self.children.until(is_so, f"{count} certificates of each side on the wire", within_s=20)

    async def told(self, event: str, count: int) -> None:
        """Wait until the agents have logged this so often."""

        async def is_so() -> bool:
            return len([line for line in self.log if line["event"] == event]) >= count

        await self.children.until(is_so, f"{count} times {event}", within_s=20)

    def renew(self) -> None:
        for agent in self.agents.values():
            agent.renew()


@asynccontextmanager
async def playing(scene: Scene) -> AsyncIterator[Scene]:
    """Both agents up, and ended at the end."""
    try:
        for side in Side:
            await scene.start(side)
        yield scene
    finally:
        await scene.stop_all()


@pytest.fixture
async def scene(place: Path, children: Children, log: list[EventDict]) -> AsyncIterator[Scene]:
    """Agents that sign in their own process."""
    write_authority(place / "ca")
    source: dict[str, object] = {"ca_dir": place / "ca"}
    async with playing(Scene(place, children, log, dict.fromkeys(Side, source))) as scene:
        yield scene


@pytest.fixture
async def mesh(envoy_binary: Path, children: Children, http: aiohttp.ClientSession, place: Path) -> Mesh:
    """A CA service in a process of its own."""
    write_authority(place / "ca")
    mesh = Mesh(children, envoy_binary, http)
    await mesh.start_ca()
    return mesh


@pytest.fixture
async def scene_with_ca(place: Path, children: Children, log: list[EventDict], mesh: Mesh) -> AsyncIterator[Scene]:
    """Agents that ask the service, with join tokens for their first certificates."""
    source = {side: from_service(place, mesh, IDS[side]) for side in Side}
    async with playing(Scene(place, children, log, source)) as scene:
        yield scene


def from_service(place: Path, mesh: Mesh, id: SpiffeID) -> dict[str, object]:
    token = place / f"{id.path.strip('/')}.token"
    token.write_text(join_token(place / "ca", id))
    ca = parse_address(f"127.0.0.1:{mesh.ports.ca}")
    return {"ca": ca, "ca_bundle": place / "ca" / "ca.crt", "token_file": token}


# --- renewals and restarts of agents


async def test_renewals_of_both_sides_under_load_cost_no_request(scene: Scene, each_envoys: EnvoyStarter) -> None:
    envoys = await scene.envoys(each_envoys)
    async with Load(envoys.url, rate=100, on_response=scene.note) as load:
        for count in range(1, 6):
            await scene.sees(count)
            scene.renew()
        await scene.sees(6)
    assert load.failures == 0, load.reasons


async def test_a_renewal_pushes_the_certificate_and_not_the_unchanged_bundle(
    scene: Scene, each_envoys: EnvoyStarter
) -> None:
    envoys = await scene.envoys(each_envoys)
    async with Load(envoys.url, on_response=scene.note):
        await scene.sees(1)
        scene.renew()
        await scene.sees(2)
    for envoy in (envoys.server, envoys.client):
        stats = await envoy.stats(r"^sds\..*\.update_success$")
        assert stats == {"sds.ROOTCA.update_success": 1, "sds.default.update_success": 2}


async def test_a_restart_of_both_agents_costs_no_request_and_sends_nothing_that_is_held(
    scene: Scene, each_envoys: EnvoyStarter
) -> None:
    envoys = await scene.envoys(each_envoys)
    async with Load(envoys.url, rate=100, on_response=scene.note) as load:
        await scene.sees(1)
        for side in Side:
            await scene.stop(side)
            await scene.start(side)
        await scene.children.until(lambda: all_connected(envoys, 1), "Envoys are back", within_s=20)
        assert await updates(envoys) == 4
        scene.renew()
        await scene.sees(2)
    assert await updates(envoys) == 6
    assert load.failures == 0, load.reasons


async def test_while_an_agent_is_away_its_proxy_goes_on_with_what_it_has(
    scene: Scene, each_envoys: EnvoyStarter
) -> None:
    envoys = await scene.envoys(each_envoys)
    async with Load(envoys.url, rate=100, on_response=scene.note) as load:
        await scene.sees(1)
        for side in Side:
            await scene.stop(side)
        await scene.children.until(lambda: all_connected(envoys, 0), "Envoys have noticed", within_s=20)
        before = load.requests
        await scene.children.until(lambda: has_sent(load, before + 50), "requests go on", within_s=20)
        for side in Side:
            await scene.start(side)
        scene.renew()
        await scene.sees(2)
    assert load.failures == 0, load.reasons


# --- the CA is away


async def test_a_ca_that_is_killed_costs_no_request_and_renewals_go_on_when_it_is_back(
    scene_with_ca: Scene, mesh: Mesh, envoys: EnvoyStarter
) -> None:
    scene = scene_with_ca
    pair = await scene.envoys(envoys)
    async with Load(pair.url, rate=100, on_response=scene.note) as load:
        await scene.sees(1)
        await mesh.kill_ca()
        scene.renew()
        await scene.told("svid.renewal_failed", 2)
        await mesh.start_ca()
        await scene.sees(2)
    assert load.failures == 0, load.reasons


async def test_agents_that_start_while_the_ca_is_away_serve_what_they_have_kept(
    scene_with_ca: Scene, mesh: Mesh, envoys: EnvoyStarter
) -> None:
    """Also to Envoys that start then."""
    scene = scene_with_ca
    serials = {side: (await agent.svid()).serial for side, agent in scene.agents.items()}
    await mesh.kill_ca()
    for side in Side:
        await scene.stop(side)
        await scene.start(side)
    pair = await scene.envoys(envoys)
    async with Load(pair.url, on_response=scene.note) as load:
        await scene.sees(1)
    assert {side: seen[0] for side, seen in scene.seen.items()} == serials
    assert load.failures == 0, load.reasons


async def all_connected(envoys: Pair, expected: int) -> bool:
    for envoy in (envoys.server, envoys.client):
        states = await envoy.stats(r"^sds\..*\.control_plane\.connected_state$")
        if set(states.values()) != {expected}:
            return False
    return True


async def updates(envoys: Pair) -> int:
    """Secrets that Envoys have taken, of both sides together."""
    return sum([await envoy.total(r"^sds\..*\.update_success$") for envoy in (envoys.server, envoys.client)])


async def has_sent(load: Load, count: int) -> bool:
    await asyncio.sleep(0)
    return load.requests >= count
