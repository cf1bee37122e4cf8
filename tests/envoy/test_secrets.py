"""What real Envoys make of our stream: refusals, names that come late, the SPIFFE validator."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog

from citadel_py.agent.envoy_bootstrap import server_bootstrap
from citadel_py.agent.envoy_proxy import ServerProxy
from citadel_py.core.context_options import ContextOptions
from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.core.secrets import CertificateSecret, TrustSecret
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.sds.hub import Hub
from citadel_py.sds.names import secrets_of
from demo_parts.children import Children
from demo_parts.envoys import Envoy, EnvoyStarter
from demo_parts.load import Load
from tests.envoy.conftest import ServeSDS
from tests.envoy.support import CLIENT, LOOPBACK, SERVER, TD, Pair, Signer, is_admitted, start_server, tls_client


async def total_is(envoy: Envoy, pattern: str, count: int) -> bool:
    return await envoy.total(pattern) == count


async def active_versions(envoy: Envoy) -> dict[str, str]:
    """What Envoy's own dump says it holds."""
    dump = await envoy.json("/config_dump", {"resource": "dynamic_active_secrets"})
    return {each["name"]: each["version_info"] for each in dump["configs"]}


async def test_a_refused_certificate_costs_no_request_and_leaves_no_trace(
    pair: tuple[Pair, dict[str, Hub]], signer: Signer, children: Children
) -> None:
    """Envoy keeps a refused secret in its configuration, unless it is sent the last good one again."""
    envoys, hubs = pair
    hub, envoy = hubs["server"], envoys.server
    good = hub.snapshot["default"].version
    key = private_key_pem(generate_key(KeyType.P256))
    with structlog.testing.capture_logs() as log:
        async with Load(envoys.url, rate=100) as load:
            hub.replace([CertificateSecret("default", signer.mint(SERVER).svid.chain_pem(), key)])
            await children.until(
                lambda: total_is(envoy, r"^sds\.default\.update_success$", 2), "the good one is back", within_s=20
            )
            assert (await active_versions(envoy))["default"] == good
            before = load.requests
            hub.replace(secrets_of(signer.mint(SERVER)))
            await children.until(
                lambda: total_is(envoy, r"^sds\.default\.update_success$", 3), "the next is taken", within_s=20
            )
    assert load.failures == 0, load.reasons
    assert load.requests > before
    assert await envoy.total(r"^sds\.default\.update_rejected$") == 1
    (nack,) = [line for line in log if line["event"] == "sds.nacked"]
    assert "KEY_VALUES_MISMATCH" in nack["error"]
    assert key.splitlines()[1].decode() not in repr(log)


async def test_a_name_that_comes_late_is_served_at_once_and_the_others_do_not_wait_for_it(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, children: Children, place: Path
) -> None:
    held = signer.mint(SERVER)
    hub, sds = await serve_sds(held)
    bootstrap = server_bootstrap(
        ServerProxy(node="s", sds=sds, listen=LOOPBACK, admin_port=0, admitted=TD, certificate="late")
    )
    envoy = await each_envoys.launch("server", bootstrap)
    await children.until(
        lambda: total_is(envoy, r"^sds\.ROOTCA\.update_success$", 1), "the bundle is there", within_s=10
    )
    assert not await envoy.is_ready()
    hub.replace([CertificateSecret("late", held.svid.chain_pem(), private_key_pem(held.key))])
    await children.until(envoy.is_ready, "Envoy is ready", within_s=5)
    assert await is_admitted(await envoy.port("inbound"), tls_client(place, signer.mint(CLIENT)))


@pytest.mark.parametrize("bundle", ["ROOTCA", "ALL", "spiffe://example.org"])
async def test_every_name_of_the_bundle_verifies_peers(
    bundle: str, each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> None:
    _, sds = await serve_sds(signer.mint(SERVER))
    _, port = await start_server(each_envoys, sds, bundle=bundle)
    assert await is_admitted(port, tls_client(place, signer.mint(CLIENT)))
    assert not await is_admitted(port, tls_client(place, Signer().mint(CLIENT)))
    assert not await is_admitted(port, tls_client(place))


async def test_with_the_spiffe_validator_no_authority_speaks_for_another_trust_domain(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> None:
    friend = Signer(TrustDomain("friend.test"))
    held = signer.mint(SERVER)
    hub, sds = await serve_sds(held)
    hub.replace(secrets_of(held, [friend.bundle]))
    _, port = await start_server(each_envoys, sds, bundle="ALL", admitted=TD)
    assert await is_admitted(port, tls_client(place, signer.mint(CLIENT)))
    assert not await is_admitted(port, tls_client(place, friend.mint(CLIENT)))


async def test_a_federated_trust_domain_is_admitted_where_it_is_asked_for(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> None:
    domain = TrustDomain("friend.test")
    friend, held = Signer(domain), signer.mint(SERVER)
    hub, sds = await serve_sds(held)
    hub.replace(secrets_of(held, [friend.bundle]))
    _, port = await start_server(each_envoys, sds, bundle="spiffe://friend.test", admitted=domain)
    assert await is_admitted(port, tls_client(place, friend.mint(SpiffeID(domain, "/client"))))
    assert not await is_admitted(port, tls_client(place, signer.mint(CLIENT)))
    assert not await is_admitted(port, tls_client(place, signer.mint(SpiffeID(domain, "/client"))))


async def test_the_own_bundle_may_come_with_the_spiffe_validator(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> None:
    held = signer.mint(SERVER)
    hub, sds = await serve_sds(held)
    hub.replace(secrets_of(held, options=ContextOptions(use_spiffe_validator=True)))
    _, port = await start_server(each_envoys, sds)
    assert await is_admitted(port, tls_client(place, signer.mint(CLIENT)))
    assert not await is_admitted(port, tls_client(place, Signer().mint(CLIENT)))
    assert not await is_admitted(port, tls_client(place))


async def test_a_new_root_is_trusted_before_leaves_of_it_arrive(
    pair: tuple[Pair, dict[str, Hub]], signer: Signer, children: Children
) -> None:
    envoys, hubs = pair
    new = Signer()
    both = signer.bundle.with_authorities((*signer.bundle.authorities, *new.bundle.authorities))
    async with Load(envoys.url, rate=100) as load:
        for hub in hubs.values():
            hub.replace([TrustSecret("ROOTCA", (both,))])
        for envoy in (envoys.server, envoys.client):
            await children.until(
                lambda envoy=envoy: total_is(envoy, r"^sds\.ROOTCA\.update_success$", 2),  # type: ignore[misc]
                "both roots are trusted",
                within_s=20,
            )
        for name, id in (("server", SERVER), ("client", CLIENT)):
            held = new.mint(id)
            chain, key = held.svid.chain_pem(), private_key_pem(held.key)
            hubs[name].replace([CertificateSecret("default", chain, key)])
        for envoy in (envoys.server, envoys.client):
            await children.until(
                lambda envoy=envoy: total_is(envoy, r"^sds\.default\.update_success$", 2),  # type: ignore[misc]
                "the new leaf is taken",
                within_s=20,
            )
        await children.until(lambda: ten_more(load, load.requests), "requests with the new leaves", within_s=20)
        for hub in hubs.values():
            hub.replace([TrustSecret("ROOTCA", (new.bundle,))])
        await children.until(lambda: ten_more(load, load.requests), "requests with the new root only", within_s=20)
    assert load.failures == 0, load.reasons


async def ten_more(load: Load, start: int) -> bool:
    while load.requests < start + 10:
        await asyncio.sleep(0.01)
    return True
