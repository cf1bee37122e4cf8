"""An agent of a node: two hundred identities on twenty sockets, from a CA that is killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from citadel_py.app import agent as agent_module
from citadel_py.config import AgentSettings, parse_address
from citadel_py.core.spiffe import SpiffeID
from citadel_py.store.ledger import SQLLedger
from tests.app.agent_support import FREE, RunningAgent, running
from tests.app.serve_support import join_token, write_authority
from tests.ca.support import TD, until

ROOT = Path(__file__).parents[2]
NODE = SpiffeID(TD, "/node/one")
VAULT = SpiffeID(TD, "/ns/bank/sa/vault")
POLICY = f"""
trust_domain = "{TD}"

[[rule]]
name = "nodes act for the workloads of the shop"
who.id = "{TD.id}/node/*"
what.id = ["own", "{TD.id}/ns/shop/sa/*"]
"""
SOCKETS, EACH = 20, 10


def workload(number: int) -> SpiffeID:
    return SpiffeID(TD, f"/ns/shop/sa/w{number}")


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "configure", lambda *_: None)


@pytest.fixture
def place() -> Iterator[Path]:
    """With an authority, and the policy of its service."""
    with tempfile.TemporaryDirectory(prefix="citadel-") as path:
        write_authority(Path(path) / "ca")
        (Path(path) / "policy.toml").write_text(POLICY)
        yield Path(path)


def free_port() -> int:
    """The same one for the service that is started again; below those that clients are given."""
    for port in range(21000, 32000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no port is free")


class Service:
    """`citadel-py serve` as a process that may be killed. Its port for certificates is another one each time."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        listen = ("--listen", f"localhost:{self.port}", "--admin", "localhost:0", "--policy", "policy.toml")
        with (self.place / "serve.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "citadel_py", "serve", "--dir", "ca", *listen, "--log-format", "json"),
                cwd=self.place,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=log,
            )
        async with asyncio.timeout(30):
            while not await self._answers():
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("localhost", self.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True


@asynccontextmanager
async def service_in(place: Path) -> AsyncIterator[Service]:
    service = Service(place)
    await service.start()
    try:
        yield service
    finally:
        await service.kill()


def settings_of(place: Path, port: int, sockets: list[dict[str, object]], **changes: object) -> AgentSettings:
    (place / "token").write_text(join_token(place / "ca", NODE))
    return AgentSettings(
        ca=parse_address(f"localhost:{port}"),
        ca_bundle=place / "ca" / "ca.crt",
        token_file=place / "token",
        node_id=NODE,
        state=place / "state",
        admin=FREE,
        sockets=sockets,
        **changes,
    )


def many_sockets(place: Path, **more: object) -> list[dict[str, object]]:
    """Each with ten workloads; the first also with one that the policy refuses."""
    sockets: list[dict[str, object]] = []
    for number in range(SOCKETS):
        identities = [workload(number * EACH + each) for each in range(EACH)]
        refused = [VAULT] if number == 0 else []
        sockets.append({"path": f"unix:{place}/run/{number}.sock", "identities": [*identities, *refused], **more})
    return sockets


async def served(agent: RunningAgent) -> dict[str, str]:
    """The serial of every workload on its own socket; that of the first of each is that of `default`, too."""
    serials: dict[str, str] = {}
    for number in range(SOCKETS):
        names = [str(workload(number * EACH + each)) for each in range(EACH)]
        path = agent.settings.served[number].path
        found = await agent.svids("default", *names, socket=path)
        assert {str(found[name].id) for name in names} == set(names)
        assert found["default"].serial == found[names[0]].serial
        serials |= {name: found[name].serial for name in names}
    return serials


async def test_two_hundred_identities_live_through_a_ca_that_is_killed(place: Path) -> None:
    count = SOCKETS * EACH
    async with service_in(place) as service:
        settings = settings_of(place, service.port, many_sockets(place))
        async with running(settings) as agent:
            await until(lambda: len(agent.told("svid.renewed")) == count + 1, seconds=60)
            first = await served(agent)
            await check_that_the_refused_one_fails_alone(agent)

            agent.renew()
            await until(lambda: len(agent.told("svid.renewed")) > count + 20)
            await service.kill()
            await until(lambda: agent.made[-1].attempts_under_way == 0)
            before = len(agent.told("svid.renewed"))
            agent.renew()
            await until(lambda: len({line["spiffe_id"] for line in agent.told("svid.renewal_failed")}) == count + 2)
            assert (await served(agent)).keys() == first.keys(), "what is valid is served all the while"
            await service.start()
            await until(lambda: len(agent.told("svid.renewed")) >= before + count + 1, seconds=60)
            second = await served(agent)
            assert set(first.values()).isdisjoint(second.values())
        await service.kill()

        async with running(settings) as again:
            assert await served(again) == second
            assert len(again.told("svid.loaded")) == count + 1
    check_ledger(place)


async def check_that_the_refused_one_fails_alone(agent: RunningAgent) -> None:
    await until(lambda: bool(agent.told("svid.renewal_failed")))
    failed = agent.told("svid.renewal_failed")
    assert {line["spiffe_id"] for line in failed} == {str(VAULT)}
    assert {(line["rule"], line["log_level"]) for line in failed} == {("identity_not_granted", "error")}
    status, text = await agent.ready()
    assert status == 200, text
    assert f"[degraded] identities: 1 of {SOCKETS * EACH + 2} have no valid certificate: {VAULT}" in text
    standing = json.loads((await agent.page("/status"))[1])["identities"][0]
    assert (standing["spiffe_id"], standing["serial"]) == (str(VAULT), None)
    assert standing["last_error"]["rule"] == "identity_not_granted"
    assert standing["failures"] >= 1


def check_ledger(place: Path) -> None:
    """The node came by its token and then by its certificate, and asked for all others in its own name."""
    with SQLLedger.open(place / "ca" / "ledger.db", writer="offline") as ledger:
        entries = [entry for entry in ledger.entries() if entry.method != "self"]
    node = [entry for entry in entries if entry.spiffe_id == str(NODE)]
    others = [entry for entry in entries if "/ns/shop/" in entry.spiffe_id]
    assert node[0].method == "join_token"
    assert {entry.method for entry in node[1:]} == {"mtls"}
    assert {(entry.method, entry.caller) for entry in others} == {("mtls", str(NODE))}
