"""The load of `bench`: a process of its own that asks a certificate service, so that its work is not the server's.

It reads one Load as JSON from standard input, makes connections and a few calls to warm up, says
`ready`, waits for `go`, and writes one Outcome as JSON. It measures and judges nothing but time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field

import grpc

from citadel_py._proto.istio.v1.auth import ca_pb2, ca_pb2_grpc
from citadel_py.core.pem import load_certificates

READY, GO = "ready", "go"
WARM, NEW = "warm", "new"
CALL_TIMEOUT_S = 30.0
TOKEN_CONNECTIONS = 8  # callers with tokens share so many warm connections at most
SAMPLES = 50
_OWN_CONNECTIONS = ("grpc.use_local_subchannel_pool", 1)  # or grpc would share one between channels


@dataclass(frozen=True, slots=True)
class Credential:
    """Who a caller is: a bearer token, or a certificate with its key (PEM)."""

    token: str = ""
    chain: str = ""
    key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask for, and how. It ends after `count` calls or `seconds`, whichever is first.

    Call number n uses CSR n and credential n of those that are there, from the first again after the last.
    """

    address: str
    roots: str
    csrs: Sequence[str]
    credentials: Sequence[Credential] = field(repr=False)
    in_flight: int
    connections: str
    count: int
    seconds: float

    @classmethod
    def from_json(cls, text: str) -> Load:
        value = json.loads(text)
        return cls(**{**value, "credentials": [Credential(**each) for each in value["credentials"]]})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: the certificates without the bundle at their end, and the number of the CSR that was sent."""

    csr: int
    chain: Sequence[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a load. `serials` are those of all answers, hex; the first `warm_up` of them came before `go`."""

    seconds: float
    latencies_s: Sequence[float]
    serials: Sequence[str]
    warm_up: int
    failures: int
    first_failure: str
    samples: Sequence[Sample]

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        value = json.loads(text)
        return cls(**{**value, "samples": [Sample(**each) for each in value["samples"]]})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Client:
    """Makes calls, and keeps what came of them."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._stubs: list[ca_pb2_grpc.IstioCertificateServiceAsyncStub] = []
        self._answers: list[tuple[int, Sequence[str]]] = []
        self._latencies: list[float] = []
        self._failures: list[str] = []

    async def run(self, begin: Callable[[], None]) -> Outcome:
        """Warm up, wait in `begin`, and call until the load is done."""
        async with AsyncExitStack() as stack:
            if self._load.connections == WARM:
                self._stubs = [await stack.enter_async_context(self._connected(n)) for n in range(self._channels())]
            numbers = itertools.count()
            await self._calls(itertools.islice(numbers, self._warm_up_calls()), until=float("inf"))
            warm_up = len(self._answers)
            self._latencies.clear()
            begin()
            started = time.perf_counter()
            await self._calls(itertools.islice(numbers, self._load.count), until=started + self._load.seconds)
            return self._outcome(time.perf_counter() - started, warm_up)

    def _channels(self) -> int:
        """Certificates belong to connections, so each of them needs its own."""
        if self._load.credentials[0].chain:
            return len(self._load.credentials)
        return min(self._load.in_flight, TOKEN_CONNECTIONS)

    def _warm_up_calls(self) -> int:
        return max(len(self._stubs), self._load.in_flight)

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
            reply = await self._ask(number)
        except grpc.aio.AioRpcError as error:
            self._failures.append(f"{error.code().name}: {error.details()}")
        else:
            self._latencies.append(time.perf_counter() - started)
            self._answers.append((number, reply.cert_chain))

    async def _ask(self, number: int) -> ca_pb2.IstioCertificateResponse:
        if self._stubs:
            return await self._create(self._stubs[number % len(self._stubs)], number)
        async with self._connected(number) as stub:
            return await self._create(stub, number)

    async def _create(
        self, stub: ca_pb2_grpc.IstioCertificateServiceAsyncStub, number: int
    ) -> ca_pb2.IstioCertificateResponse:
        request = ca_pb2.IstioCertificateRequest(csr=self._load.csrs[number % len(self._load.csrs)])
        token = self._credential(number).token
        headers = (("authorization", f"Bearer {token}"),) if token else ()
        return await stub.CreateCertificate(request, metadata=headers, timeout=CALL_TIMEOUT_S)

    @asynccontextmanager
    async def _connected(self, number: int) -> AsyncIterator[ca_pb2_grpc.IstioCertificateServiceAsyncStub]:
        own = self._credential(number)
        credentials = grpc.ssl_channel_credentials(
            self._load.roots.encode(), own.key.encode() or None, own.chain.encode() or None
        )
        async with grpc.aio.secure_channel(self._load.address, credentials, [_OWN_CONNECTIONS]) as channel:
            yield ca_pb2_grpc.IstioCertificateServiceStub(channel)

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


def _serial(leaf_pem: str) -> str:
    return f"{load_certificates(leaf_pem.encode())[0].serial_number:x}"


def _wait_for_go() -> None:
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    if sys.stdin.readline().strip() != GO:
        raise SystemExit(1)  # whoever started us is gone


def main() -> None:
    load = Load.from_json(sys.stdin.readline())
    sys.stdout.write(asyncio.run(Client(load).run(_wait_for_go)).to_json() + "\n")


if __name__ == "__main__":
    main()
