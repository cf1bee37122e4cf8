"""A socket's secrets over TCP: listening waits for a certificate, and everything published arrives."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest

from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest
from citadel_py._proto.envoy.service.secret.v3 import sds_pb2_grpc
from citadel_py.app.served_tcp import ServedTCP
from citadel_py.config import parse_address
from citadel_py.core.errors import Unavailable
from citadel_py.core.keys import private_key_pem
from citadel_py.core.ports import HeldSVID
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.evidence import Evidence
from citadel_py.sds.names import secrets_of
from tests.envoy.support import CLIENT, SERVER, Signer

GRACE = timedelta(seconds=1)
OPTIONS = (("grpc.ssl_target_name_override", "localhost"),)


def new_served(listen: str = "127.0.0.1:0") -> ServedTCP:
    return ServedTCP(parse_address(listen), [CLIENT], AgentMetrics(), evidence=Evidence(lambda: 0.0))


async def until_listening(served: ServedTCP) -> None:
    async with asyncio.timeout(10):
        while not served.is_listening:
            await asyncio.sleep(0)


async def fetched(served: ServedTCP, signer: Signer, client: HeldSVID) -> bytes:
    """What a peer gets as `default`."""
    pair = private_key_pem(client.key), client.svid.chain_pem()
    credentials = grpc.ssl_channel_credentials(signer.bundle.to_pem(), *pair)
    async with grpc.aio.secure_channel(served.address, credentials, OPTIONS) as channel:
        stub = sds_pb2_grpc.SecretDiscoveryServiceStub(channel)
        response = await stub.FetchSecrets(DiscoveryRequest(resource_names=["default"]), timeout=20)
        return bytes(response.resources[0].value)


async def test_it_listens_once_there_is_a_certificate_and_serves_what_is_published() -> None:
    signer, served = Signer(), new_served()
    running = asyncio.create_task(served.run())
    served.publish((), {}, None)
    await asyncio.sleep(0)
    assert served.address == ""
    for held in (signer.mint(SERVER, dns=("localhost",)) for _ in range(2)):
        served.publish(secrets_of(held), {}, replace(held, bundle=signer.bundle))
        await until_listening(served)
        assert held.svid.chain_pem() in await fetched(served, signer, signer.mint(CLIENT))
    await served.stop(GRACE)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_port_that_is_taken_ends_it() -> None:
    held, first = Signer().mint(SERVER), new_served()
    first.publish(secrets_of(held), {}, held)
    running = asyncio.create_task(first.run())
    await until_listening(first)
    second = new_served(first.address)
    second.publish(secrets_of(held), {}, held)
    with pytest.raises(Unavailable):
        await second.run()
    running.cancel()
    await first.stop(GRACE)
