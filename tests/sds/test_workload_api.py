"""The SPIFFE Workload API over a real Unix socket, with gRPC's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key

from citadel_py._proto.spiffe.workload import workload_pb2_grpc
from citadel_py._proto.spiffe.workload.workload_pb2 import (
    JWTBundlesRequest,
    JWTSVIDRequest,
    ValidateJWTSVIDRequest,
    X509BundlesRequest,
    X509BundlesResponse,
    X509SVIDRequest,
    X509SVIDResponse,
)
from citadel_py.core.keys import same_public_key
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.rpc import RpcInterceptor
from citadel_py.obs.status import read_refusal
from citadel_py.sds.hub import Hub
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import UnixAddress
from citadel_py.sds.workload import Workload
from citadel_py.sds.workload_api import WorkloadService
from tests.store.things import WEB, new_held, new_pki

if TYPE_CHECKING:  # the name is in the .pyi alone
    from citadel_py._proto.spiffe.workload.workload_pb2_grpc import SpiffeWorkloadAPIAsyncStub

Call: TypeAlias = "grpc.aio.UnaryStreamCall[X509SVIDRequest, X509SVIDResponse]"  # generic in the stubs only

HEADER = (("workload.spiffe.io", "true"),)
LIMIT_S = 20


@pytest.fixture
def workload() -> Workload:
    return Workload()


@pytest.fixture
async def workload_server(
    address: UnixAddress, workload: Workload, metrics: AgentMetrics
) -> AsyncIterator[SecretServer]:
    interceptor = RpcInterceptor(metrics, uniform=lambda: 0.5)
    server = SecretServer(address, Hub(), metrics, interceptors=(interceptor,), workload=workload)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def api(workload_server: SecretServer, address: UnixAddress) -> AsyncIterator[SpiffeWorkloadAPIAsyncStub]:
    assert workload_server.is_listening
    async with grpc.aio.insecure_channel(address.target) as channel:
        yield workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)


@pytest.fixture
def held() -> HeldSVID:
    return new_held(new_pki())


def follow(api: SpiffeWorkloadAPIAsyncStub) -> Call:
    return api.FetchX509SVID(X509SVIDRequest(), metadata=HEADER, timeout=LIMIT_S)


async def receive(call: Call) -> X509SVIDResponse:
    response = await call.read()
    assert isinstance(response, X509SVIDResponse)
    return response


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await (call.read() if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    return failed.value


def der(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)


async def test_an_svid_is_its_chain_its_key_and_its_bundle_in_der(
    api: SpiffeWorkloadAPIAsyncStub, workload: Workload, held: HeldSVID
) -> None:
    workload.replace([held])
    response = await receive(follow(api))
    (svid,) = response.svids
    assert svid.spiffe_id == str(WEB)
    assert svid.x509_svid == der(*held.svid.chain)
    assert svid.bundle == der(*held.bundle.authorities)
    key = load_der_private_key(svid.x509_svid_key, None)
    assert same_public_key(key.public_key(), held.svid.leaf.public_key())  # type: ignore[arg-type]
    assert (svid.hint, list(response.crl), dict(response.federated_bundles)) == ("", [], {})


async def test_each_renewal_is_pushed_on_the_stream(
    api: SpiffeWorkloadAPIAsyncStub, workload: Workload, held: HeldSVID
) -> None:
    workload.replace([held])
    call = follow(api)
    await receive(call)
    for _ in range(3):
        renewed = new_held(new_pki())
        workload.replace([renewed])
        (svid,) = (await receive(call)).svids
        assert svid.x509_svid == der(*renewed.svid.chain)


async def test_what_a_client_has_is_not_sent_again(
    api: SpiffeWorkloadAPIAsyncStub, workload: Workload, held: HeldSVID, metrics: AgentMetrics
) -> None:
    workload.replace([held])
    call = follow(api)
    await receive(call)
    workload.replace([held])
    await receive(follow(api))  # by now the first stream has had its turn
    assert b"citadel_workload_pushes_total 2.0" in metrics.exposition()
    renewed = new_held(new_pki())
    workload.replace([renewed])
    assert (await receive(call)).svids[0].x509_svid == der(*renewed.svid.chain)


async def test_a_second_identity_joins_the_first_which_stays_the_default(
    api: SpiffeWorkloadAPIAsyncStub, workload: Workload, held: HeldSVID
) -> None:
    pki = new_pki("other.example")
    other = new_held(pki, SpiffeID(pki.bundle.trust_domain, "/db"))
    workload.replace([held])
    workload.replace([other])
    workload.replace([new_held(new_pki())])
    response = await receive(follow(api))
    assert [svid.spiffe_id for svid in response.svids] == [str(WEB), "spiffe://other.example/db"]
    bundles = await api.FetchX509Bundles(X509BundlesRequest(), metadata=HEADER, timeout=LIMIT_S).read()
    assert isinstance(bundles, X509BundlesResponse)
    assert sorted(bundles.bundles) == ["spiffe://example.org", "spiffe://other.example"]


async def test_bundles_of_other_trust_domains_come_along_and_go_again(
    api: SpiffeWorkloadAPIAsyncStub, workload: Workload, held: HeldSVID
) -> None:
    other = new_pki("other.example").bundle
    workload.replace([held], [other])
    call, only_bundles = follow(api), api.FetchX509Bundles(X509BundlesRequest(), metadata=HEADER, timeout=LIMIT_S)
    theirs = {"spiffe://other.example": der(*other.authorities)}
    ours = {"spiffe://example.org": der(*held.bundle.authorities)}
    assert dict((await receive(call)).federated_bundles) == theirs
    bundles = await only_bundles.read()
    assert isinstance(bundles, X509BundlesResponse)
    assert dict(bundles.bundles) == ours | theirs
    workload.replace([held])
    assert dict((await receive(call)).federated_bundles) == {}


async def test_bundles_are_sent_by_trust_domain_and_again_only_when_they_change(
    api: SpiffeWorkloadAPIAsyncStub, workload: Workload
) -> None:
    one, two = new_pki(), new_pki()
    workload.replace([new_held(one)])
    call = api.FetchX509Bundles(X509BundlesRequest(), metadata=HEADER, timeout=LIMIT_S)
    first = await call.read()
    workload.replace([new_held(one)])
    await receive(follow(api))  # by now the stream of bundles has had its turn
    workload.replace([new_held(two)])
    second = await call.read()
    for response, pki in ((first, one), (second, two)):
        assert isinstance(response, X509BundlesResponse)
        assert dict(response.bundles) == {"spiffe://example.org": der(*pki.bundle.authorities)}


@pytest.mark.parametrize(
    "metadata", [(), (("workload.spiffe.io", "True"),), (("workload.spiffe.io", ""),), (("workload", "true"),)]
)
async def test_a_call_without_the_header_is_refused_whatever_it_calls(
    api: SpiffeWorkloadAPIAsyncStub, workload: Workload, held: HeldSVID, metadata: tuple[tuple[str, str], ...]
) -> None:
    workload.replace([held])
    calls = (
        api.FetchX509SVID(X509SVIDRequest(), metadata=metadata, timeout=LIMIT_S),
        api.FetchX509Bundles(X509BundlesRequest(), metadata=metadata, timeout=LIMIT_S),
        api.FetchJWTSVID(JWTSVIDRequest(), metadata=metadata, timeout=LIMIT_S),
        api.FetchJWTBundles(JWTBundlesRequest(), metadata=metadata, timeout=LIMIT_S),
        api.ValidateJWTSVID(ValidateJWTSVIDRequest(), metadata=metadata, timeout=LIMIT_S),
    )
    for call in calls:
        error = await refusal(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "workload.spiffe.io" in (error.details() or "")


async def test_without_an_identity_a_client_is_told_at_once_to_try_again(
    api: SpiffeWorkloadAPIAsyncStub, workload: Workload, held: HeldSVID
) -> None:
    error = await refusal(follow(api))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    told = read_refusal(error)
    assert told.reason == "WORKLOAD_IDENTITY_MISSING"
    assert told.retry_after is not None
    workload.replace([held])
    assert len((await receive(follow(api))).svids) == 1


async def test_jwt_calls_are_not_implemented_and_the_text_says_what_is(api: SpiffeWorkloadAPIAsyncStub) -> None:
    calls = (
        api.FetchJWTSVID(JWTSVIDRequest(audience=["a"]), metadata=HEADER, timeout=LIMIT_S),
        api.FetchJWTBundles(JWTBundlesRequest(), metadata=HEADER, timeout=LIMIT_S),
        api.ValidateJWTSVID(ValidateJWTSVIDRequest(audience="a", svid="b"), metadata=HEADER, timeout=LIMIT_S),
    )
    for call in calls:
        error = await refusal(call)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "FetchX509SVID" in (error.details() or "")


async def test_streams_end_at_once_when_the_server_stops(
    api: SpiffeWorkloadAPIAsyncStub, workload_server: SecretServer, workload: Workload, held: HeldSVID
) -> None:
    workload.replace([held])
    call = follow(api)
    await receive(call)
    async with asyncio.timeout(1):  # the grace is 2 s: they do not use it up
        await workload_server.stop()
    assert await call.read() is grpc.aio.EOF


async def test_a_client_that_breaks_off_leaves_nothing_behind(
    api: SpiffeWorkloadAPIAsyncStub, workload: Workload, held: HeldSVID, metrics: AgentMetrics
) -> None:
    workload.replace([held])
    call = follow(api)
    await receive(call)
    assert b"citadel_workload_streams 1.0" in metrics.exposition()
    call.cancel()
    async with asyncio.timeout(5):
        while b"citadel_workload_streams 0.0" not in metrics.exposition():
            await asyncio.sleep(0)


async def test_streams_beyond_the_limit_are_refused_until_one_ends(
    address: UnixAddress, workload: Workload, held: HeldSVID, metrics: AgentMetrics
) -> None:
    workload.replace([held])
    server = grpc.aio.server(interceptors=[RpcInterceptor(metrics, uniform=lambda: 0.5)])
    server.add_generic_rpc_handlers((WorkloadService(workload, metrics, max_streams=1).handlers(),))
    address.path.parent.mkdir()
    server.add_insecure_port(address.target)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address.target) as channel:
            api = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
            first = follow(api)
            await receive(first)
            error = await refusal(follow(api))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert read_refusal(error).reason == "WORKLOAD_STREAMS_EXHAUSTED"
            first.cancel()
            async with asyncio.timeout(5):
                while b"citadel_workload_streams 0.0" not in metrics.exposition():
                    await asyncio.sleep(0)
            await receive(follow(api))
    finally:
        workload.close()
        await server.stop(None)


class SlowClient:
    """A context whose client takes one response when it is asked to."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self._may_take = asyncio.Semaphore(0)
        self._has_taken = asyncio.Event()

    def invocation_metadata(self) -> object:
        return HEADER

    async def write(self, response: bytes) -> None:
        await self._may_take.acquire()
        self.taken.append(response)
        self._has_taken.set()

    async def take(self) -> X509SVIDResponse:
        self._has_taken.clear()
        self._may_take.release()
        await self._has_taken.wait()
        return X509SVIDResponse.FromString(self.taken[-1])


async def test_a_client_that_reads_slowly_gets_the_latest_and_not_all_that_came_between(
    workload: Workload, metrics: AgentMetrics
) -> None:
    pki, client = new_pki(), SlowClient()
    versions = [new_held(pki) for _ in range(4)]
    workload.replace([versions[0]])
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
        service = WorkloadService(workload, metrics)
        serving = tasks.create_task(service.fetch_x509_svid(b"", client))  # type: ignore[arg-type]  # what it uses of it
        while service.open_streams == 0:
            await asyncio.sleep(0)
        for held in versions[1:]:
            workload.replace([held])
            await asyncio.sleep(0)
        await client.take()
        assert (await client.take()).svids[0].x509_svid == der(*versions[-1].svid.chain)
        workload.close()
        await serving
    assert len(client.taken) == 2
