"""`scripts/bench-sds`: thousands of streams of SDS to one server of an agent, each with a node of a real Envoy's size.

The server runs in a process of its own, as the agent wires it, and is told by lines on its standard
input what to do. What is printed: how long until every stream has acknowledged a changed bundle,
and what the server's memory and CPU time are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc

from citadel_py._proto.envoy.config.core.v3.base_pb2 import Node
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from citadel_py.core.bundle import Bundle
from citadel_py.core.keys import KeyType, generate_key
from citadel_py.core.profile import Validity, root_certificate
from citadel_py.core.secrets import TrustSecret
from citadel_py.core.spiffe import TrustDomain
from citadel_py.obs.logging import configure
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.rpc import RpcInterceptor
from citadel_py.sds.encoding import SECRET_TYPE_URL
from citadel_py.sds.evidence import Evidence
from citadel_py.sds.hub import Hub
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import UnixAddress

NAME: Final = "ROOTCA"
NODE_BYTES: Final = 61_090  # of a real Envoy
PUSHES: Final = 5
SERVICE: Final = "/envoy.service.secret.v3.SecretDiscoveryService"
OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)  # a connection for each channel, as proxies have


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench-sds", description=__doc__)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--per-connection", type=int, default=2, help="an Envoy opens one stream per secret")
    parser.add_argument("--serve", metavar="SOCKET", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(Path(arguments.serve)))
        return 0
    print(
        f"{'protocol':10}{'streams':>9}{'opened':>10}{'changed bundle to last ACK':>34}{'memory':>12}{'a stream':>12}"
    )
    for is_delta in (False, True):
        asyncio.run(measure(arguments.streams, arguments.per_connection, is_delta=is_delta))
    return 0


# ------------------------------------------------------------------------------------------------- server


async def serve(path: Path) -> None:
    """One answer in JSON to each line: `open N` and `push N` wait for N ACKs in all, `push` of another bundle."""
    configure("json", "info")
    hub, metrics, evidence = Hub(), AgentMetrics(), Evidence(time.monotonic)
    hub.replace([trust()])
    interceptor = RpcInterceptor(metrics, uniform=lambda: 0.5)
    server = SecretServer(UnixAddress(path), hub, metrics, interceptors=[interceptor], evidence=evidence)
    await server.start()
    answer(memory_kib=memory_kib())
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, count = line.split()
        started = time.perf_counter()
        with evidence.listen() as changed:
            if command == "push":
                hub.replace([trust()])
            while (metrics.registry.get_sample_value("citadel_sds_acks_total") or 0) < int(count):
                await changed.wait()
                changed.clear()
        took_s, current = time.perf_counter() - started, hub.snapshot[NAME].version
        acknowledged = sum(state.acknowledged == current for state in evidence.snapshot())
        answer(took_s=took_s, acknowledged=acknowledged, memory_kib=memory_kib())
    await server.stop()


def trust() -> TrustSecret:
    domain, now = TrustDomain("example.org"), datetime.now(UTC).replace(microsecond=0)
    validity = Validity(now, now + timedelta(days=1))
    root = root_certificate(generate_key(KeyType.P256), domain, validity, serial=time.time_ns())
    return TrustSecret(NAME, (Bundle(domain, (root,)),))


def memory_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def answer(**facts: float) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


# ------------------------------------------------------------------------------------------------- client


async def measure(streams: int, per_connection: int, *, is_delta: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="citadel-") as place:
        path = Path(place) / "sds.sock"
        async with server_of(path) as server, AsyncExitStack() as stack:
            empty = await server.read()
            started = time.perf_counter()
            tasks = []
            for first in range(0, streams, per_connection):
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS))
                ids = range(first, min(first + per_connection, streams))
                tasks += [asyncio.create_task(follow(channel, f"proxy-{id}", is_delta=is_delta)) for id in ids]
            await server.ask(f"open {streams}")
            opened_s = time.perf_counter() - started
            pushes = [await server.ask(f"push {streams * count}") for count in range(2, PUSHES + 2)]
            if any(push["acknowledged"] != streams for push in pushes):
                raise SystemExit("not every stream has acknowledged the current bundle: nothing was measured")
            show(streams, opened_s, pushes, empty, is_delta=is_delta)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def show(
    streams: int, opened_s: float, pushes: Sequence[dict[str, float]], empty: dict[str, float], *, is_delta: bool
) -> None:
    took_ms = sorted(1000 * push["took_s"] for push in pushes)
    memory = pushes[-1]["memory_kib"]
    each = (memory - empty["memory_kib"]) / streams
    took = f"{took_ms[0]:.0f} to {took_ms[-1]:.0f} ms, median {took_ms[len(took_ms) // 2]:.0f}"
    name = "delta" if is_delta else "sotw"
    print(f"{name:10}{streams:9}{opened_s:8.1f} s{took:>34}{memory / 1024:8.0f} MiB{each:8.1f} KiB")


class Server:
    """The child, and its answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the server was started without pipes")
        self._lines, self._answers = process.stdin, process.stdout

    async def ask(self, line: str) -> dict[str, float]:
        self._lines.write(f"{line}\n".encode())
        await self._lines.drain()
        return await self.read()

    async def read(self) -> dict[str, float]:
        facts: dict[str, float] = json.loads(await self._answers.readline())
        return facts


@asynccontextmanager
async def server_of(path: Path) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", path,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Server(process)
    finally:
        process.terminate()
        await process.wait()


async def follow(channel: grpc.aio.Channel, node: str, *, is_delta: bool) -> None:
    """A proxy's stream: subscribe once, then acknowledge everything."""
    method = f"{SERVICE}/{'DeltaSecrets' if is_delta else 'StreamSecrets'}"
    call: Any = channel.stream_stream(method)()
    await call.write(first_delta(node) if is_delta else first(node))
    while (response := await call.read()) is not grpc.aio.EOF:
        if is_delta:
            delta = DeltaDiscoveryResponse.FromString(response)
            request: Any = DeltaDiscoveryRequest(type_url=SECRET_TYPE_URL, response_nonce=delta.nonce)
        else:
            whole = DiscoveryResponse.FromString(response)
            request = DiscoveryRequest(
                resource_names=[NAME], type_url=SECRET_TYPE_URL, version_info=whole.version_info,
                response_nonce=whole.nonce,
            )  # fmt: skip
        await call.write(request.SerializeToString())


def first(node: str) -> bytes:
    request = DiscoveryRequest(resource_names=[NAME], type_url=SECRET_TYPE_URL, node=Node(id=node))
    return request.SerializeToString() + field(2, EXTENSIONS)


def first_delta(node: str) -> bytes:
    request = DeltaDiscoveryRequest(resource_names_subscribe=[NAME], type_url=SECRET_TYPE_URL, node=Node(id=node))
    return request.SerializeToString() + field(1, EXTENSIONS)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes on the wire: messages that come twice are merged."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


# Of core.v3.Node: an Envoy's `extensions` (field 9), some 120 bytes each, which our part of the API does not know.
EXTENSIONS: Final = b"".join([field(9, b"x" * 116)] * (NODE_BYTES // 118))


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    raise SystemExit(main())
