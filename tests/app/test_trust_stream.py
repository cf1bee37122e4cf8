"""Service, agent and proxy together: trust reaches proxies without a new certificate, and what they say comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships .pyi files without py.typed

from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from citadel_py._proto.envoy.service.secret.v3 import sds_pb2_grpc
from citadel_py.app import agent as agent_module
from citadel_py.app import serve as serve_module
from citadel_py.config import AgentSettings, SocketSettings, parse_address
from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import Revoked, build_crl, crls_pem
from citadel_py.core.pem import load_certificates
from citadel_py.core.profile import Authority
from citadel_py.store import authority_dir
from tests.app import serve_support
from tests.app.agent_support import FREE, WEB, RunningAgent, running, settings_of
from tests.app.serve_support import Running, join_token, serving
from tests.ca.support import TD, make_authority, until


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (agent_module, serve_module):
        monkeypatch.setattr(module, "configure", lambda *_: None)


@dataclass
class Site:
    """An authority on disk with all its keys, and where everything else is."""

    place: Path
    authorities: list[Authority] = field(default_factory=list)  # each that has a list

    def __post_init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)
        root, signer = make_authority(self.now)
        self.bundle = Bundle(TD, (root.certificate,))
        self.authorities += [root, signer]
        authority_dir.create(self.directory, root=root, intermediate=signer, bundle=self.bundle, passphrase=None)

    @property
    def directory(self) -> Path:
        return self.place / "ca"

    def publish_another_root(self) -> None:
        """As the first step of its rotation: trusted, before anything is signed by it."""
        root, _ = make_authority(self.now)
        self.authorities.append(root)
        self.bundle = self.bundle.with_authorities((*self.bundle.authorities, root.certificate))
        (self.directory / "ca.crt").write_bytes(self.bundle.to_pem())
        (self.directory / "bundle.json").write_bytes(self.bundle.to_jwks())
        os.kill(os.getpid(), signal.SIGHUP)

    def write_lists(self, number: int, *serials: int) -> None:
        revoked, end = [Revoked(serial, self.now) for serial in serials], self.now + timedelta(days=7)
        crls = [build_crl(each, revoked, number=number, now=self.now, next_update=end) for each in self.authorities]
        (self.directory / "crl.pem").write_bytes(crls_pem(crls))

    def agent(self, service: Running, socket: SocketSettings | None = None) -> AgentSettings:
        (self.place / "token").write_text(join_token(self.directory, WEB) + "\n")
        address, bundle = parse_address(service.addresses["listen"]), self.directory / "ca.crt"
        mtls = parse_address(service.addresses["listen_mtls"])
        token = self.place / "token"
        source = {"ca": address, "ca_mtls": mtls, "ca_bundle": bundle, "token_file": token}
        if socket is None:
            return settings_of(self.place, **source)
        return AgentSettings(state=self.place / "state", admin=FREE, sockets=(socket,), **source)


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="citadel-") as place:
        yield Site(Path(place))


@pytest.fixture
async def service(site: Site) -> AsyncIterator[Running]:
    async with serving(serve_support.settings_of(site.directory)) as service:
        yield service


@dataclass
class Proxy:
    """An SDS client that takes or refuses what it gets under ROOTCA."""

    name: str
    refuses: bool = False
    bundles: list[int] = field(default_factory=list)  # how many roots there were each time
    lists: list[bool] = field(default_factory=list)

    @asynccontextmanager
    async def at(self, agent: RunningAgent) -> AsyncIterator[Proxy]:
        async with grpc.aio.insecure_channel(f"unix:{agent.socket}") as channel:
            asking = asyncio.create_task(self._ask(channel))
            try:
                await until(lambda: bool(self.bundles))
                yield self
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, channel: grpc.aio.Channel) -> None:
        call = sds_pb2_grpc.SecretDiscoveryServiceStub(channel).StreamSecrets()
        request = DiscoveryRequest(resource_names=["ROOTCA"])
        request.node.id = self.name
        while True:
            await call.write(request)
            response = await call.read()
            assert isinstance(response, DiscoveryResponse)
            secret = Secret()
            response.resources[0].Unpack(secret)
            self.bundles.append(len(load_certificates(secret.validation_context.trusted_ca.inline_bytes)))
            self.lists.append(bool(secret.validation_context.crl.inline_bytes))
            request.response_nonce = response.nonce
            if self.refuses and len(self.bundles) > 1:
                request.error_detail.CopyFrom(Status(code=13, message="-----BEGIN PRIVATE KEY-----"))
            else:
                request.version_info = response.version_info


def serial_of(agent: RunningAgent) -> str:
    """Of what it holds; asking over SDS would be another proxy."""
    held = agent.made[-1].held(WEB)
    assert held is not None
    return held.svid.serial


async def until_lists(service: Running, *, other_than: str) -> None:
    """Until there are other lists, and everybody has them."""
    async with asyncio.timeout(20):
        while True:
            page = await page_of(service)
            held = {row["acknowledged_crl_hash"] for row in page["proxies"]}
            if page["crl_hash"] != other_than and held == {page["crl_hash"]}:
                return
            await asyncio.sleep(0.002)


async def page_of(service: Running) -> Any:
    status, text = await service.page("/trust")
    assert status == 200
    return json.loads(text)


async def states_of(service: Running) -> dict[str, tuple[str, int | None]]:
    """By the last word of what a proxy is called; the agent itself has none."""
    rows = (await page_of(service))["proxies"]
    return {row["proxy"].rpartition(" ")[2]: (row["state"], row["acknowledged_sequence"]) for row in rows}


async def until_states(service: Running, wanted: dict[str, tuple[str, int | None]]) -> None:
    async with asyncio.timeout(20):
        while await states_of(service) != wanted:
            await asyncio.sleep(0.002)


async def test_a_new_root_reaches_proxies_without_a_new_leaf_and_their_answer_reaches_the_ca(
    site: Site, service: Running
) -> None:
    async with running(site.agent(service), service.events) as agent, Proxy("envoy").at(agent) as proxy:
        await until_states(service, {"": ("current", 1), "envoy": ("current", 1)})
        before = serial_of(agent)
        started = time.perf_counter()
        site.publish_another_root()
        await until_states(service, {"": ("current", 2), "envoy": ("current", 2)})
        took_s = time.perf_counter() - started

        assert proxy.bundles == [1, 2]
        assert serial_of(agent) == before
        assert (await page_of(service))["lacking"] == 0
        assert agent.settings.state.joinpath("trust.json").exists()
    assert took_s < 5  # tens of milliseconds, were the machine ours


async def test_a_proxy_that_rejects_is_listed_and_the_others_are_not_held_up(site: Site, service: Running) -> None:
    starting = running(site.agent(service), service.events)
    async with starting as agent, Proxy("good").at(agent), Proxy("bad", refuses=True).at(agent):
        await until_states(service, dict.fromkeys(("", "good", "bad"), ("current", 1)))
        site.publish_another_root()
        await until_states(service, {"": ("current", 2), "good": ("current", 2), "bad": ("rejected", 1)})
        page = await page_of(service)
        status, told = await agent.page("/proxies")

    assert (page["proxies"][0]["reason"], page["count"]["rejected"]) == ("rejected_by_proxy", 1)
    rejected = {each["node"]: each["rejected"] is not None for each in json.loads(told)["proxies"]}
    assert (status, rejected) == (200, {"good": False, "bad": True})
    assert "PRIVATE" not in json.dumps(page)


async def test_a_revocation_reaches_agents_within_a_second_and_its_holder_gets_nothing_more(
    site: Site, service: Running
) -> None:
    async with running(site.agent(service), service.events) as agent, Proxy("envoy").at(agent):
        site.write_lists(1)
        await until_lists(service, other_than="")
        held = (await page_of(service))["crl_hash"]
        site.write_lists(2, int(serial_of(agent), 16))
        await until_lists(service, other_than=held)

        agent.renew()
        await until(lambda: bool(agent.told("svid.renewal_failed")))
    refused = [line for line in service.events if line["event"] == "rpc.finished" and "was revoked" in str(line)]
    assert refused


async def test_lists_reach_proxies_that_check_them_within_about_a_second(site: Site) -> None:
    site.write_lists(1)
    async with serving(serve_support.settings_of(site.directory)) as service:
        socket = SocketSettings(path=f"unix:{site.place}/run/sds.sock", identities=(WEB,), crl="path")
        async with running(site.agent(service, socket), service.events) as agent, Proxy("envoy").at(agent) as proxy:
            assert proxy.lists == [True]
            await until_states(service, {"": ("current", 1), "envoy": ("current", 1)})
            started = time.perf_counter()
            site.write_lists(2, 7)
            await until(lambda: len(proxy.lists) == 2)
            await until_states(service, {"": ("current", 1), "envoy": ("current", 1)})

    assert time.perf_counter() - started < 5  # looked for once a second; then milliseconds, were the machine ours


async def test_a_ca_that_restarts_loses_nothing_and_the_agent_serves_what_it_knew(site: Site) -> None:
    settings = serve_support.settings_of(site.directory)
    async with serving(settings) as service:
        port, mtls = (parse_address(service.addresses[name]) for name in ("listen", "listen_mtls"))
        configured = site.agent(service)
        async with running(configured, service.events) as agent, Proxy("envoy").at(agent):
            site.publish_another_root()
            await until_states(service, {"": ("current", 2), "envoy": ("current", 2)})

    async with running(configured) as agent, Proxy("envoy").at(agent) as proxy:  # the CA is away
        assert proxy.bundles == [2]
        again = serve_support.settings_of(site.directory, listen=port, listen_mtls=mtls)
        async with serving(again) as service:
            await until_states(service, {"": ("current", 2), "envoy": ("current", 2)})
        assert proxy.bundles == [2]
