"""The load of `bench`: a process of its own that asks a certificate service, so that its work is not the server's.

It reads one Load as JSON from standard input, makes connections and a few calls to warm up, says
`ready`, waits for `go`, and writes one Outcome as JSON. It measures and judges nothing but time.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import grpc

from citadel_py._proto.istio.v1.auth import ca_pb2, ca_pb2_grpc
from citadel_py.app.bench_calls import (
    CALL_TIMEOUT_S,
    GO,
    NEW,
    READY,
    STREAM,
    CallFailed,
    Connect,
    Connection,
    Credential,
    Load,
    Outcome,
    Sample,
)
from citadel_py.app.bench_stream import Stream
from citadel_py.core.pem import load_certificates

TOKEN_CONNECTIONS = 8  # callers with tokens share so many warm connections at most
SAMPLES = 50
_OWN_CONNECTIONS = ("grpc.use_local_subchannel_pool", 1)  # or grpc would share one between channels


class Client:
    """Makes calls over what `connect` gives, and keeps what came of them."""

    def __init__(self, load: Load, connect: Connect) -> None:
        self._load = load
        self._connect = connect
        self._warm: list[Connection] = []
        self._answers: list[tuple[int, Sequence[str]]] = []
        self._latencies: list[float] = []
        self._failures: list[str] = []

    async def run(self, begin: Callable[[], None]) -> Outcome:
        """Warm up, wait in `begin`, and call until the load is done."""
        async with AsyncExitStack() as stack:
            if self._load.connections != NEW:
                self._warm = [await stack.enter_async_context(self._connected(n)) for n in range(self._channels())]
            numbers = itertools.count()
            await self._calls(itertools.islice(numbers, self._warm_up_calls()), until=float("inf"))
            warm_up = len(self._answers)
            self._latencies.clear()
            begin()
            started = time.perf_counter()
            await self._calls(itertools.islice(numbers, self._load.count), until=started + self._load.seconds)
            return self._outcome(time.perf_counter() - started, warm_up)

    def _channels(self) -> int:
        """Certificates and streams belong to connections, so each of them needs its own."""
        if self._load.credentials[0].chain or self._load.connections == STREAM:
            return len(self._load.credentials)
        return min(self._load.in_flight, TOKEN_CONNECTIONS)

    def _warm_up_calls(self) -> int:
        return max(len(self._warm), self._load.in_flight)

    async def _calls(self, numbers: Iterator[int], *, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.in_flight):
                group.create_task(self._caller(numbers, until))

    async def _caller(self, numbers: Iterator[int], until: float) -> None:
        for number in numbers:
            if time.perf_counter() >= until:
                return
            await self._call(number)

    async def _call(self, number: int) -> None:
        started = time.perf_counter()
        try:
            chain = await self._ask(number)
        except CallFailed as error:
            self._failures.append(str(error))
        else:
            self._latencies.append(time.perf_counter() - started)
            self._answers.append((number, chain))

    async def _ask(self, number: int) -> Sequence[str]:
        csr, credential = self._load.csrs[number % len(self._load.csrs)], self._credential(number)
        if self._warm:
            return await self._warm[number % len(self._warm)].ask(csr, credential)
        async with self._connected(number) as connection:
            return await connection.ask(csr, credential)

    def _connected(self, number: int) -> AbstractAsyncContextManager[Connection]:
        return self._connect(self._load, self._credential(number))

    def _credential(self, number: int) -> Credential:
        return self._load.credentials[number % len(self._load.credentials)]

    def _outcome(self, seconds: float, warm_up: int) -> Outcome:
        step = max(1, len(self._answers) // SAMPLES)
        return Outcome(
            seconds=seconds,
            latencies_s=sorted(self._latencies),
            serials=[_serial(chain[0]) for _, chain in self._answers],
            warm_up=warm_up,
            failures=len(self._failures),
            first_failure=self._failures[0] if self._failures else "",
            samples=[
                Sample(number % len(self._load.csrs), list(chain[:-1])) for number, chain in self._answers[::step]
            ],
        )


class _Istio:
    """A gRPC channel with the certificate API."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: ca_pb2_grpc.IstioCertificateServiceAsyncStub = ca_pb2_grpc.IstioCertificateServiceStub(channel)

    async def ask(self, csr: str, credential: Credential) -> Sequence[str]:
        """See Connection."""
        request = ca_pb2.IstioCertificateRequest(csr=csr)
        headers = (("authorization", f"Bearer {credential.token}"),) if credential.token else ()
        try:
            reply = await self._stub.CreateCertificate(request, metadata=headers, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(f"{error.code().name}: {error.details()}") from error
        return reply.cert_chain


@asynccontextmanager
async def citadel(load: Load, credential: Credential) -> AsyncIterator[Connection]:
    """A TLS connection of its own, with the caller's certificate where it has one."""
    credentials = grpc.ssl_channel_credentials(
        load.roots.encode(), credential.key.encode() or None, credential.chain.encode() or None
    )
    async with grpc.aio.secure_channel(load.address, credentials, [_OWN_CONNECTIONS]) as channel:
        if load.connections != STREAM:
            yield _Istio(channel)
            return
        stream = Stream(channel, credential)
        reading = asyncio.create_task(stream.read())
        try:
            yield stream
        finally:
            reading.cancel()


def _serial(leaf_pem: str) -> str:
    return f"{load_certificates(leaf_pem.encode())[0].serial_number:x}"


def _wait_for_go() -> None:
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    if sys.stdin.readline().strip() != GO:
        raise SystemExit(1)  # whoever started us is gone


def main(connect: Connect = citadel) -> None:
    """Be the client process."""
    load = Load.from_json(sys.stdin.readline())
    sys.stdout.write(asyncio.run(Client(load, connect).run(_wait_for_go)).to_json() + "\n")


if __name__ == "__main__":
    main()
