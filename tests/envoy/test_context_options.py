"""Options of the validation context on real Envoys: which peers are admitted, and what revocation does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from citadel_py.agent.envoy_proxy import Peers
from citadel_py.core.context_options import ContextOptions, CrlCheck, PeerMatcher
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.sds.hub import Hub
from citadel_py.sds.names import trust_of
from demo_parts.children import Children
from demo_parts.envoys import EnvoyStarter
from tests.envoy.conftest import ServeSDS
from tests.envoy.support import CLIENT, SERVER, TD, Signer, is_admitted, start_server, tls_client
from tests.envoy.test_secrets import total_is

OTHER = SpiffeID(TD, "/other")
BELOW = SpiffeID(TD, "/client/below")
BESIDE = SpiffeID(TD, "/client-of-another")

PLAIN, SPIFFE = ContextOptions(), ContextOptions(use_spiffe_validator=True)
VALIDATORS = [pytest.param(PLAIN, id="plain"), pytest.param(SPIFFE, id="spiffe")]


class Scene:
    """A server Envoy whose peers are decided by what SDS brings, and clients that knock."""

    def __init__(self, signer: Signer, held: HeldSVID, hub: Hub, place: Path) -> None:
        self.port = 0
        self._signer = signer
        self._held = held
        self._hub = hub
        self._place = place

    def offer(self, options: ContextOptions, crls: Iterable[x509.CertificateRevocationList] = ()) -> None:
        offer = trust_of(self._held.bundle, (), options, crls={TD: tuple(crls)})
        assert "ROOTCA" not in offer.withheld
        self._hub.replace(offer.secrets)

    async def admits(self, client: SpiffeID | HeldSVID) -> bool:
        held = client if isinstance(client, HeldSVID) else self._signer.mint(client)
        return await is_admitted(self.port, tls_client(self._place, held))


@pytest.fixture
async def scene(serve_sds: ServeSDS, signer: Signer, place: Path) -> Scene:
    held = signer.mint(SERVER)
    hub, _ = await serve_sds(held)
    return Scene(signer, held, hub, place)


async def start(scene: Scene, starter: EnvoyStarter, place: Path, bundle: str = "ROOTCA") -> None:
    sds = place / "server-sds" / "sds.sock"
    _, scene.port = await start_server(starter, sds, admitted=Peers.BY_AGENT, bundle=bundle)


@pytest.mark.parametrize("validator", VALIDATORS)
async def test_peers_that_the_agent_names_are_admitted_and_no_others(
    validator: ContextOptions, scene: Scene, each_envoys: EnvoyStarter, place: Path
) -> None:
    scene.offer(replace(validator, peers=(PeerMatcher(CLIENT),)))
    await start(scene, each_envoys, place)
    assert await scene.admits(CLIENT)
    assert not await scene.admits(OTHER)
    assert not await scene.admits(BELOW)


@pytest.mark.parametrize("validator", VALIDATORS)
async def test_a_prefix_admits_what_is_below_it_and_nothing_beside_it(
    validator: ContextOptions, scene: Scene, each_envoys: EnvoyStarter, place: Path
) -> None:
    scene.offer(replace(validator, peers=(PeerMatcher(CLIENT, is_prefix=True),)))
    await start(scene, each_envoys, place)
    assert await scene.admits(BELOW)
    assert not await scene.admits(CLIENT)
    assert not await scene.admits(BESIDE)


async def test_a_whole_trust_domain_may_be_admitted(scene: Scene, each_envoys: EnvoyStarter, place: Path) -> None:
    scene.offer(ContextOptions(peers=(PeerMatcher.parse("spiffe://example.org/**"),)))
    await start(scene, each_envoys, place)
    assert await scene.admits(OTHER)
    assert not await scene.admits(SpiffeID(TrustDomain("example.org.evil"), "/other"))


async def test_an_envoy_that_leaves_its_peers_to_the_agent_admits_nobody_before_the_agent_names_some(
    scene: Scene, each_envoys: EnvoyStarter, place: Path
) -> None:
    await start(scene, each_envoys, place)
    assert not await scene.admits(CLIENT)


@pytest.mark.parametrize(
    ("validator", "check", "bundle"),
    [
        pytest.param(PLAIN, CrlCheck.LEAF, "ROOTCA", id="plain-leaf"),
        pytest.param(PLAIN, CrlCheck.PATH, "ROOTCA", id="plain-path"),
        pytest.param(SPIFFE, CrlCheck.PATH, "ROOTCA", id="spiffe-path"),
        pytest.param(PLAIN, CrlCheck.PATH, "ALL", id="all-path"),
    ],
)
async def test_a_revoked_peer_is_refused_while_revocation_is_checked_and_only_then(
    validator: ContextOptions, check: CrlCheck, bundle: str, scene: Scene, each_envoys: EnvoyStarter, place: Path,
    signer: Signer, children: Children,
) -> None:  # fmt: skip
    revoked, off = signer.mint(CLIENT), replace(validator, peers=(PeerMatcher.parse("spiffe://example.org/**"),))
    lists = (signer.crl(revoked), *([signer.root_crl()] if check is CrlCheck.PATH else []))
    scene.offer(replace(off, crl=check), lists)
    sds = place / "server-sds" / "sds.sock"
    envoy, scene.port = await start_server(each_envoys, sds, admitted=Peers.BY_AGENT, bundle=bundle)
    assert await scene.admits(OTHER)
    assert not await scene.admits(revoked)
    scene.offer(off)
    taken = rf"^sds\.{bundle}\.update_success$"
    await children.until(lambda: total_is(envoy, taken, 2), "the context without lists is taken", within_s=20)
    assert await scene.admits(revoked)


async def test_a_trust_domain_without_lists_is_not_hurt_by_those_of_another(
    serve_sds: ServeSDS, each_envoys: EnvoyStarter, signer: Signer, place: Path
) -> None:
    domain = TrustDomain("friend.test")
    friend, held, revoked = Signer(domain), signer.mint(SERVER), signer.mint(CLIENT)
    peers = tuple(PeerMatcher.parse(f"spiffe://{each}/**") for each in (TD, domain))
    lists = {TD: (signer.root_crl(), signer.crl(revoked))}
    hub, sds = await serve_sds(held)
    hub.replace(
        trust_of(held.bundle, [friend.bundle], ContextOptions(peers=peers, crl=CrlCheck.PATH), crls=lists).secrets
    )
    _, port = await start_server(each_envoys, sds, admitted=Peers.BY_AGENT, bundle="ALL")
    assert await is_admitted(port, tls_client(place, friend.mint(SpiffeID(domain, "/client"))))
    assert await is_admitted(port, tls_client(place, signer.mint(OTHER)))
    assert not await is_admitted(port, tls_client(place, revoked))
    assert not await is_admitted(port, tls_client(place, friend.mint(OTHER)))
