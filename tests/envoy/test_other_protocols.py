"""Real Envoys that take their secrets by the incremental protocol, and over ADS."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from citadel_py.agent.envoy_bootstrap import SDS_CLUSTER, Json, client_bootstrap, server_bootstrap
from citadel_py.agent.envoy_proxy import ClientProxy, ServerProxy
from citadel_py.config import Address
from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.core.ports import HeldSVID
from citadel_py.core.secrets import CertificateSecret
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.hub import Hub
from citadel_py.sds.names import secrets_of
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import UnixAddress
from demo_parts.children import Children
from demo_parts.envoys import Envoy, EnvoyStarter
from demo_parts.load import Load
from demo_parts.wire import CLIENT_HEADERS, SERVER_HEADERS, Leaf, Side, leaves
from tests.envoy.conftest import ServeSDS
from tests.envoy.support import CLIENT, LOOPBACK, SERVER, TD, Pair, Signer, is_admitted, start_server, tls_client

ROTATIONS = 20

Hubs = dict[str, Hub]
Change = Callable[[Json, Path], Json]


def is_incremental(bootstrap: Json, _place: Path) -> Json:
    """As the program makes it; said by the field."""
    return bootstrap


def over_ads(api_type: str) -> Change:
    """The same bootstrap with all secrets on the one stream of ADS.

    A cluster in a bootstrap whose secrets come by ADS crashes Envoy at its start (envoyproxy/envoy
    15517, 19618), so such clusters move to a file of CDS.
    """

    def change(bootstrap: Json, place: Path) -> Json:
        (sds, *others) = bootstrap["static_resources"]["clusters"]
        changed: Json = with_ads_sources(bootstrap)
        changed["static_resources"]["clusters"] = [sds]
        grpc = [{"envoy_grpc": {"cluster_name": SDS_CLUSTER}}]
        ads = {"api_type": api_type, "transport_api_version": "V3", "grpc_services": grpc}
        changed["dynamic_resources"] = {"ads_config": {**ads, "set_node_on_first_message_only": True}}
        if others:
            file = place / f"{bootstrap['node']['id']}-cds.json"
            cluster = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
            resources = [{"@type": cluster, **with_ads_sources(other)} for other in others]
            file.write_text(json.dumps({"version_info": "1", "resources": resources}))
            source = {"path_config_source": {"path": str(file)}, "resource_api_version": "V3"}
            changed["dynamic_resources"]["cds_config"] = source
        return changed

    return change


def with_ads_sources(value: Any) -> Any:
    """Every `sds_config` replaced by ADS, and routes that may lead to clusters of CDS."""
    if isinstance(value, list):
        return [with_ads_sources(each) for each in value]
    if not isinstance(value, dict):
        return value
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "15s"}
    changed = {name: ads if name == "sds_config" else with_ads_sources(each) for name, each in value.items()}
    return changed | {"validate_clusters": False} if "virtual_hosts" in value else changed


PROTOCOLS: dict[str, tuple[bool, Change]] = {
    "delta": (True, is_incremental),
    "ads": (False, over_ads("GRPC")),
    "delta-ads": (False, over_ads("DELTA_GRPC")),
}


@pytest.fixture(params=PROTOCOLS)
async def pair(
    request: pytest.FixtureRequest, each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> tuple[Pair, Hubs]:
    """Two Envoys that trust each other and speak one of the protocols, and the hubs behind them."""
    is_delta, change = PROTOCOLS[request.param]
    server_hub, server_socket = await serve_sds(signer.mint(SERVER))
    client_hub, client_socket = await serve_sds(signer.mint(CLIENT))
    server_proxy = ServerProxy(
        node="s", sds=server_socket, listen=LOOPBACK, admin_port=0, admitted=TD, is_delta=is_delta,
        response_headers=SERVER_HEADERS,
    )  # fmt: skip
    server = await each_envoys.start("server", change(server_bootstrap(server_proxy), place))
    port = await server.port("inbound")
    client_proxy = ClientProxy(
        node="c", sds=client_socket, listen=LOOPBACK, admin_port=0, upstream=Address("127.0.0.1", port),
        peer=SERVER, max_requests_per_connection=1, is_delta=is_delta, response_headers=CLIENT_HEADERS,
    )  # fmt: skip
    client = await each_envoys.start("client", change(client_bootstrap(client_proxy), place))
    url = f"http://127.0.0.1:{await client.port('inbound')}/"
    return Pair(server, client, port, url), {"server": server_hub, "client": client_hub}


async def total_is(envoy: Envoy, pattern: str, count: int) -> bool:
    return await envoy.total(pattern) == count


def has_all(seen: Mapping[Side, set[Leaf]], count: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return all(len(each) >= count for each in seen.values())

    return check


async def test_both_renew_under_load_without_a_failure(
    pair: tuple[Pair, Hubs], signer: Signer, children: Children
) -> None:
    envoys, hubs = pair
    seen: dict[Side, set[Leaf]] = {side: set() for side in Side}

    def note(headers: Mapping[str, str]) -> None:
        for side, leaf in leaves(headers).items():
            seen[side].add(leaf)

    async with Load(envoys.url, rate=100, on_response=note) as load:
        for count in range(1, ROTATIONS + 1):
            await children.until(has_all(seen, count), f"{count} leaves seen", within_s=20)
            hubs["server"].replace(secrets_of(signer.mint(SERVER)))
            hubs["client"].replace(secrets_of(signer.mint(CLIENT)))
        await children.until(has_all(seen, ROTATIONS + 1), "the last leaves seen", within_s=20)
    assert load.failures == 0, load.reasons
    for envoy in (envoys.server, envoys.client):
        assert await envoy.total(r"^sds\..*\.update_rejected$") == 0


async def test_an_incremental_envoy_is_not_sent_a_bundle_that_did_not_change(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, children: Children
) -> None:
    hub, sds = await serve_sds(signer.mint(SERVER))
    envoy, _ = await start_server(each_envoys, sds, is_delta=True)
    hub.replace(secrets_of(signer.mint(SERVER)))
    taken = r"^sds\.default\.update_success$"
    await children.until(lambda: total_is(envoy, taken, 2), "the leaf is taken", within_s=20)
    assert await envoy.total(r"^sds\.ROOTCA\.update_success$") == 1


async def test_an_incremental_envoy_that_reconnects_is_sent_only_what_is_new(
    each_envoys: EnvoyStarter, signer: Signer, children: Children, place: Path
) -> None:
    """It says by version what it holds, to an agent that has just been started anew."""
    held, address = signer.mint(SERVER), UnixAddress(place / "sds.sock")
    async with serving(address, held):
        envoy, _ = await start_server(each_envoys, address.path, is_delta=True)
    with structlog.testing.capture_logs() as log:
        async with serving(address, held) as hub:
            await children.until(lambda: has_opened(log, 2), "both streams are open again", within_s=20)
            hub.replace(secrets_of(signer.mint(SERVER)))
            taken = r"^sds\.default\.update_success$"
            await children.until(lambda: total_is(envoy, taken, 2), "the new leaf is taken", within_s=20)
    assert await envoy.total(r"^sds\.ROOTCA\.update_success$") == 1
    assert [line["names"] for line in log if line["event"] == "sds.pushed"] == [("default",)]


async def test_a_refused_certificate_costs_no_request_and_is_followed_by_the_last_good_one(
    pair: tuple[Pair, Hubs], signer: Signer, children: Children
) -> None:
    envoys, hubs = pair
    hub, envoy = hubs["server"], envoys.server
    key = private_key_pem(generate_key(KeyType.P256))
    taken = r"^sds\.default\.update_success$"
    before = await envoy.total(taken)
    with structlog.testing.capture_logs() as log:
        async with Load(envoys.url, rate=100) as load:
            hub.replace([CertificateSecret("default", signer.mint(SERVER).svid.chain_pem(), key)])
            await children.until(lambda: total_is(envoy, taken, before + 1), "the good one is back", within_s=20)
            hub.replace(secrets_of(signer.mint(SERVER)))
            await children.until(lambda: total_is(envoy, taken, before + 2), "the next is taken", within_s=20)
    assert load.failures == 0, load.reasons
    assert await envoy.total(r"^sds\.default\.update_rejected$") == 1
    assert len([line for line in log if line["event"] == "sds.nacked"]) == 1


async def test_an_incremental_envoy_goes_on_when_its_secret_is_withdrawn_and_takes_it_when_it_is_back(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, children: Children, place: Path
) -> None:
    held = signer.mint(SERVER)
    hub, sds = await serve_sds(held)
    envoy, port = await start_server(each_envoys, sds, is_delta=True)
    with structlog.testing.capture_logs() as log:
        hub.withdraw(["default"])
        await children.until(lambda: has_acked(log, "default"), "the removal is acknowledged", within_s=20)
        assert await is_admitted(port, tls_client(place, signer.mint(CLIENT)))
        hub.replace(secrets_of(held))
        await children.until(lambda: has_acked(log, "default", 2), "it is back", within_s=20)
    assert await is_admitted(port, tls_client(place, signer.mint(CLIENT)))
    assert await envoy.total(r"^sds\.default\.update_rejected$") == 0


async def has_acked(log: list[Any], name: str, count: int = 1) -> bool:
    return len([line for line in log if line["event"] == "sds.acked" and name in line["names"]]) >= count


@asynccontextmanager
async def serving(address: UnixAddress, held: HeldSVID) -> AsyncIterator[Hub]:
    """SDS on a socket for as long as the block."""
    hub = Hub()
    hub.replace(secrets_of(held))
    server = SecretServer(address, hub, AgentMetrics())
    await server.start()
    try:
        yield hub
    finally:
        await server.stop()


async def has_opened(log: list[Any], count: int) -> bool:
    return len([line for line in log if line["event"] == "sds.stream_opened"]) >= count
