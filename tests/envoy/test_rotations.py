"""Twenty rotations of both leaves under load with a handshake per request: no failure, and each is on the wire.

What is printed (`pytest -s`): how long a new certificate takes from the hub to a finished handshake. How
long that may be is not asserted: machines are shared.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from citadel_py.core.ports import HeldSVID
from citadel_py.sds.names import secrets_of
from demo_parts.children import Children
from demo_parts.envoys import EnvoyStarter
from demo_parts.load import Load
from demo_parts.wire import Side, leaves
from tests.envoy.conftest import ServeSDS, ServeTCP
from tests.envoy.support import CLIENT, SERVER, Signer, start_client, start_server, tls_client

ROTATIONS = 20


@pytest.fixture(params=["unix", "tcp"])
def serve(request: pytest.FixtureRequest, serve_sds: ServeSDS, serve_tcp: ServeTCP) -> ServeSDS | ServeTCP:
    return serve_sds if request.param == "unix" else serve_tcp


@pytest.mark.parametrize("protocol", ["sotw", "delta"])
async def test_no_request_fails_and_every_rotation_is_on_the_wire(
    protocol: str, serve: ServeSDS | ServeTCP, each_envoys: EnvoyStarter, signer: Signer, children: Children,
    place: Path, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    server_sink, server_sds = await serve(signer.mint(SERVER))
    client_sink, client_sds = await serve(signer.mint(CLIENT))
    server, port = await start_server(each_envoys, server_sds, is_delta=protocol == "delta")
    client, url = await start_client(each_envoys, client_sds, port, is_delta=protocol == "delta")
    seen: dict[Side, set[str]] = {side: set() for side in Side}

    def note(headers: Mapping[str, str]) -> None:
        for side, leaf in leaves(headers).items():
            seen[side].add(leaf.serial)

    knock = tls_client(place, signer.mint(CLIENT))
    took_ms = []
    async with Load(url, rate=100, on_response=note) as load:
        for _ in range(ROTATIONS):
            new = {Side.SERVER: signer.mint(SERVER), Side.CLIENT: signer.mint(CLIENT)}
            secrets = {side: secrets_of(held) for side, held in new.items()}
            started = time.perf_counter()
            server_sink.replace(secrets[Side.SERVER])
            client_sink.replace(secrets[Side.CLIENT])
            await presents(port, knock, new[Side.SERVER].svid.leaf.serial_number)
            took_ms.append(1000 * (time.perf_counter() - started))
            await children.until(has_seen(seen, new), "both new leaves in a request", within_s=10)
    print(f"\n{request.node.name}: median {statistics.median(took_ms):.1f} ms, worst {max(took_ms):.1f} ms")  # noqa: T201 - the measure
    assert load.failures == 0, load.reasons
    assert all(len(serials) >= ROTATIONS for serials in seen.values())
    for envoy in (server, client):
        assert await envoy.total(r"^sds\..*\.update_rejected$") == 0


async def presents(port: int, knock: ssl.SSLContext, serial: int) -> None:
    """Wait until a handshake shows this certificate."""
    async with asyncio.timeout(10):
        while await presented(port, knock) != serial:
            pass


async def presented(port: int, knock: ssl.SSLContext) -> int | None:
    """The serial number that a handshake of now shows."""
    with suppress(ConnectionError, ssl.SSLError):
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=knock)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(der).serial_number
    return None


def has_seen(seen: Mapping[Side, set[str]], new: Mapping[Side, HeldSVID]) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return all(held.svid.serial in seen[side] for side, held in new.items())

    return check
