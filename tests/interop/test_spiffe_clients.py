"""go-spiffe and py-spiffe, unchanged, on an agent's socket: they fetch, follow rotations, and wait where they must."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from _environment import SPIFFE
from _go import go_program
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.rpc import RpcInterceptor
from citadel_py.sds.hub import Hub
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import UnixAddress
from citadel_py.sds.workload import Workload
from tests.interop.conftest import CITADEL, ENVIRONMENT, TRUST_DOMAIN, citadel
from tests.store.things import WEB, new_held, new_pki

ID = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"
ROOT = Path(__file__).parents[2]
PY_SPIFFE = ROOT / "tests" / "verifiers" / "py_spiffe_client.py"
DESCRIPTORS = ROOT / "tests" / "verifiers" / "workload_descriptors.py"
OTHER_DOMAIN = "other.example"
ROTATIONS = 3
LIMIT_S = 60

Command = Callable[[int], list[str | Path]]
"""The client that follows so many updates."""


def go_spiffe(count: int) -> list[str | Path]:
    program = go_program("workload")
    if not program:
        pytest.skip("the Go programs are not built: scripts/test does that")
    return [program, f"-count={count}"]


def py_spiffe(count: int) -> list[str | Path]:
    if not SPIFFE.is_complete():
        pytest.skip("py-spiffe is not set up: scripts/test does that")
    return [SPIFFE.python, PY_SPIFFE, str(count)]


@pytest.fixture(params=[go_spiffe, py_spiffe], ids=["go-spiffe", "py-spiffe"])
def client(request: pytest.FixtureRequest) -> Command:
    command: Command = request.param
    command(1)
    return command


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name, for a Unix socket's path has few bytes."""
    with tempfile.TemporaryDirectory(prefix="citadel-") as path:
        yield Path(path)


@asynccontextmanager
async def started(command: list[str | Path], socket: Path, errors: int = PIPE) -> AsyncIterator[Process]:
    environment = {**ENVIRONMENT, "SPIFFE_ENDPOINT_SOCKET": f"unix://{socket}"}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=errors)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def told(process: Process) -> list[dict[str, Any]]:
    """Everything that a client printed; it has to end well."""
    async with asyncio.timeout(LIMIT_S):
        out, errors = await process.communicate()
    assert process.returncode == 0, (out, errors)
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def renewing_agent(place: Path) -> Iterator[tuple[Path, Path]]:
    """Its socket and log: an agent whose certificates live for a minute and are renewed every one to two seconds."""
    for directory, trust_domain in (("ca", TRUST_DOMAIN), ("other", OTHER_DOMAIN)):
        citadel("init", "--dir", place / directory, "--trust-domain", trust_domain)
    socket, log = place / "run" / "sds.sock", place / "agent.log"
    federated = ("--federated", f"{OTHER_DOMAIN}={place}/other/ca.crt")
    window = ("--ttl", "1m", "--renew-earliest", "0.02", "--renew-latest", "0.03")
    command: list[str | Path] = [
        *CITADEL,
        "agent",
        "--ca-dir",
        place / "ca",
        "--id",
        ID,
        "--state",
        place / "state",
        *window,
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--sds", f"unix:{socket}", "--log-format", "json", *federated], env=ENVIRONMENT, stderr=output
        )
        try:
            yield socket, log
        finally:
            process.terminate()
            code = process.wait(timeout=30)
    assert code == 0, log.read_text()


def renewed(log: Path) -> list[str]:
    """The serials of an agent's certificates in their order."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["serial"] for line in lines if line["event"] == "svid.renewed"]


async def test_a_program_follows_each_renewal_of_a_running_agent(
    client: Command, renewing_agent: tuple[Path, Path]
) -> None:
    socket, log = renewing_agent
    async with asyncio.timeout(LIMIT_S):
        while not (socket.exists() and renewed(log)):
            await asyncio.sleep(0.02)
    async with started(client(1 + ROTATIONS), socket) as process:
        *updates, last = await told(process)
    serials = [update.pop("serial") for update in updates]
    assert updates == [{"spiffe_id": ID, "verified": ID, "bundles": [OTHER_DOMAIN, TRUST_DOMAIN]}] * (1 + ROTATIONS)
    assert last == {"bundles": [OTHER_DOMAIN, TRUST_DOMAIN], "jwt": "Unimplemented"}
    made = renewed(log)
    start = made.index(serials[0])
    assert serials == made[start : start + 1 + ROTATIONS], "one is missing, or came twice"


async def test_a_program_that_is_there_before_the_identity_tries_until_it_comes(client: Command, place: Path) -> None:
    metrics, workload = AgentMetrics(), Workload()
    socket = place / "sds.sock"
    interceptor = RpcInterceptor(metrics, uniform=lambda: 0.5)
    server = SecretServer(UnixAddress(socket), Hub(), metrics, interceptors=[interceptor], workload=workload)
    await server.start()
    try:
        async with started(client(2), socket) as process, asyncio.timeout(LIMIT_S):
            while b'reason="workload_identity_missing"' not in metrics.exposition():
                await asyncio.sleep(0.02)
            first, second = new_held(new_pki()), new_held(new_pki())
            workload.replace([first])
            while b"citadel_workload_pushes_total 1.0" not in metrics.exposition():
                await asyncio.sleep(0.02)
            workload.replace([second])
            lines = [await process.stdout.readline() for _ in range(2)] if process.stdout else []
        assert [json.loads(line)["spiffe_id"] for line in lines] == [str(WEB)] * 2
        assert [json.loads(line)["serial"] for line in lines] == [first.svid.serial, second.svid.serial]
    finally:
        await server.stop()


def test_every_message_field_and_method_of_ours_is_theirs() -> None:
    if not SPIFFE.is_complete():
        pytest.skip("py-spiffe is not set up: scripts/test does that")
    ours = described(sys.executable, "citadel_py._proto.spiffe.workload.workload_pb2", {"PYTHONPATH": str(ROOT)})
    theirs = described(SPIFFE.python, "spiffe._proto.workload_pb2", {})
    assert len(ours) > 15
    assert {name: theirs.get(name) for name in ours} == ours


def described(python: str | Path, module: str, environment: dict[str, str]) -> dict[str, object]:
    command = [python, DESCRIPTORS, module]
    done = subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, check=True, timeout=60)
    api: dict[str, object] = json.loads(done.stdout)
    return api
