"""What the bootstraps promise, on real Envoys: who gets in, who does not, and what bad secrets change about that."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

import aiohttp
import pytest
from aiohttp import web

from citadel_py._proto.envoy.config.core.v3.base_pb2 import DataSource
from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    TlsCertificate,
)
from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from citadel_py.config import Address
from citadel_py.core.keys import private_key_pem
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.sds.hub import Hub
from citadel_py.sds.names import secrets_of
from demo_parts.children import Children
from demo_parts.envoys import EnvoyStarter
from demo_parts.load import Load
from demo_parts.wire import Leaf, Side, leaves
from tests.envoy.conftest import ServeSDS
from tests.envoy.support import (
    CLIENT,
    LOOPBACK,
    SERVER,
    TD,
    CarelessServer,
    Pair,
    Signer,
    is_admitted,
    start_client,
    start_server,
    tls_client,
)

OTHER = SpiffeID(TD, "/other")


async def test_both_renew_under_load_and_every_request_is_a_full_handshake(
    pair: tuple[Pair, dict[str, Hub]], signer: Signer, children: Children
) -> None:
    envoys, hubs = pair
    seen: dict[Side, set[Leaf]] = {side: set() for side in Side}

    def note(headers: Mapping[str, str]) -> None:
        for side, leaf in leaves(headers).items():
            seen[side].add(leaf)

    async with Load(envoys.url, rate=100, on_response=note) as load:
        for count in range(1, 4):
            await children.until(has_all(seen, count), f"{count} leaves seen", within_s=20)
            hubs["server"].replace(secrets_of(signer.mint(SERVER)))
            hubs["client"].replace(secrets_of(signer.mint(CLIENT)))
        await children.until(has_all(seen, 4), "4 leaves seen", within_s=20)
    assert load.failures == 0, load.reasons
    assert await envoys.handshakes() == load.requests
    assert await envoys.server.total(r"ssl\.session_reused") == 0


async def test_a_trust_domain_is_admitted_but_not_one_whose_name_begins_like_it(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> None:
    _, sds = await serve_sds(signer.mint(SERVER))
    _, port = await start_server(each_envoys, sds)
    impostor = signer.mint(SpiffeID.parse("spiffe://example.org.evil/client"))
    assert await is_admitted(port, tls_client(place, signer.mint(OTHER)))
    assert not await is_admitted(port, tls_client(place, impostor))
    assert not await is_admitted(port, tls_client(place))


async def test_with_ids_only_they_are_admitted(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> None:
    _, sds = await serve_sds(signer.mint(SERVER))
    _, port = await start_server(each_envoys, sds, admitted=(CLIENT,))
    assert await is_admitted(port, tls_client(place, signer.mint(CLIENT)))
    assert not await is_admitted(port, tls_client(place, signer.mint(OTHER)))
    assert not await is_admitted(port, tls_client(place, Signer().mint(CLIENT)))


async def test_a_client_speaks_with_no_other_server_than_its_peer(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, http: aiohttp.ClientSession, children: Children
) -> None:
    hub, server_sds = await serve_sds(signer.mint(SERVER))
    _, client_sds = await serve_sds(signer.mint(CLIENT))
    _, port = await start_server(each_envoys, server_sds)
    client, url = await start_client(each_envoys, client_sds, port)
    assert await status(http, url) == 200
    hub.replace(secrets_of(signer.mint(OTHER)))
    await children.until(lambda: status_is(http, url, 503), "the other server is refused", within_s=20)
    assert await client.total(r"^cluster\.upstream\.ssl\.fail_verify_san$") > 0


async def test_no_session_is_resumed(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> None:
    _, sds = await serve_sds(signer.mint(SERVER))
    _, port = await start_server(each_envoys, sds)
    context = tls_client(place, signer.mint(CLIENT))
    assert not await asyncio.to_thread(resumes, context, port)


BadTrust = Callable[[HeldSVID], Secret]


def empty(_held: HeldSVID) -> Secret:
    return Secret(name="ROOTCA", validation_context=CertificateValidationContext())


def typeless(_held: HeldSVID) -> Secret:
    return Secret(name="ROOTCA")


def certificate(held: HeldSVID, name: str = "ROOTCA") -> Secret:
    chain, key = inline(held.svid.chain_pem()), inline(private_key_pem(held.key))
    return Secret(name=name, tls_certificate=TlsCertificate(certificate_chain=chain, private_key=key))


@pytest.mark.parametrize("bad_trust", [empty, typeless, certificate])
async def test_trust_that_verifies_nobody_is_rejected_and_opens_no_door(
    bad_trust: BadTrust,
    each_envoys: EnvoyStarter,
    careless: tuple[CarelessServer, Path],
    signer: Signer,
    place: Path,
) -> None:
    sds, path = careless
    held, good = signer.mint(SERVER), inline(signer.bundle.to_pem())
    trust = Secret(name="ROOTCA", validation_context=CertificateValidationContext(trusted_ca=good))
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(start_server(each_envoys, path))
        group.create_task(sds.push(certificate(held, "default")))
        group.create_task(sds.push(trust))
    envoy, port = starting.result()
    assert (await sds.push(bad_trust(held))).error_detail.message
    assert await envoy.total(r"^sds\.ROOTCA\.update_rejected$") == 1
    assert await is_admitted(port, tls_client(place, signer.mint(CLIENT)))
    assert not await is_admitted(port, tls_client(place))
    assert not await is_admitted(port, tls_client(place, Signer().mint(CLIENT)))


async def test_the_application_learns_the_peer_from_the_certificate_and_not_from_what_it_claims(
    each_envoys: EnvoyStarter, serve_sds: ServeSDS, signer: Signer, place: Path
) -> None:
    _, sds = await serve_sds(signer.mint(SERVER))
    async with Application() as application:
        _, port = await start_server(each_envoys, sds, application=application.address)
        client = tls_client(place, signer.mint(CLIENT))
        assert await is_admitted(port, client, header=f"x-forwarded-client-cert: URI={OTHER}")
    assert len(application.peers) == 1
    assert f"URI={CLIENT}" in application.peers[0].split(";")
    assert str(OTHER) not in application.peers[0]


class Application:
    """A web server behind a proxy that notes what it is told about the peers."""

    def __init__(self) -> None:
        self.peers: list[str] = []
        self.address = LOOPBACK
        application = web.Application()
        application.router.add_get("/", self._answer)
        self._runner = web.AppRunner(application)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK.host, 0).start()
        self.address = Address(LOOPBACK.host, self._runner.addresses[0][1])
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.peers.extend(request.headers.getall("x-forwarded-client-cert"))
        return web.Response()


def resumes(context: ssl.SSLContext, port: int) -> bool:
    """Whether a second connection goes on with the session of the first."""
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as first:
        first.sendall(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        assert first.recv(12) == b"HTTP/1.1 200"
        session = first.session
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), session=session) as second:
        return bool(second.session_reused)


def has_all(seen: Mapping[Side, set[Leaf]], count: int) -> Callable[[], Awaitable[bool]]:
    """Whether each side has presented that many leaves."""

    async def check() -> bool:
        return all(len(each) >= count for each in seen.values())

    return check


def inline(data: bytes) -> DataSource:
    return DataSource(inline_bytes=data)


async def status(http: aiohttp.ClientSession, url: str) -> int:
    async with http.get(url) as response:
        return response.status


async def status_is(http: aiohttp.ClientSession, url: str, wanted: int) -> bool:
    return await status(http, url) == wanted
