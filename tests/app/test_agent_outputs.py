"""What an agent writes for programs that read files, and what it tells programs of the Workload API."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py._proto.spiffe.workload import workload_pb2_grpc
from citadel_py._proto.spiffe.workload.workload_pb2 import X509SVIDRequest, X509SVIDResponse
from citadel_py.app import agent as agent_module
from citadel_py.config import AgentSettings
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import CitadelError
from citadel_py.core.keys import load_private_key, same_public_key
from citadel_py.core.pem import load_certificates
from citadel_py.core.verify import verify_svid
from citadel_py.sds.socket import UnixAddress
from tests.app.agent_support import WEB, RunningAgent, running, settings_of
from tests.app.serve_support import write_authority
from tests.ca.support import TD, until


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "configure", lambda *_: None)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="citadel-") as path:
        write_authority(Path(path) / "ca")
        yield Path(path)


def settings_with_files(place: Path, **changes: object) -> AgentSettings:
    return settings_of(place, **{"ca_dir": place / "ca", "out": place / "tls", **changes})


def serial_in(out: Path) -> str:
    """Of the certificate in the files, which has to be verified by the bundle and belong to the key."""
    place = Path(os.path.realpath(out / "..data"))
    chain = load_certificates((place / "tls.crt").read_bytes())
    bundle = Bundle.from_pem(TD, (place / "ca.crt").read_bytes())
    key = load_private_key((place / "tls.key").read_bytes())
    assert same_public_key(key.public_key(), chain[0].public_key())  # type: ignore[arg-type]
    svid = verify_svid(chain, bundle, now=datetime.now(UTC))
    assert svid.id == WEB
    return svid.serial


async def chain_of_a_program(agent: RunningAgent) -> bytes:
    """The DER that a program of the Workload API gets."""
    async with grpc.aio.insecure_channel(UnixAddress(agent.socket).target) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        call = stub.FetchX509SVID(X509SVIDRequest(), metadata=(("workload.spiffe.io", "true"),), timeout=20)
        response = await call.read()
        assert isinstance(response, X509SVIDResponse)
        (svid,) = response.svids
        return svid.x509_svid


async def test_proxies_programs_and_files_have_the_same_certificate_through_a_renewal(place: Path) -> None:
    settings = settings_with_files(place)
    async with running(settings) as agent:
        serials = set()
        for number in (1, 2):
            await until(lambda number=number: len(agent.told("output.written")) == number)  # type: ignore[misc]
            svid = await agent.svid()
            assert serial_in(place / "tls") == svid.serial
            assert await chain_of_a_program(agent) == b"".join(each.public_bytes(Encoding.DER) for each in svid.chain)
            serials.add(svid.serial)
            agent.renew()
    assert len(serials) == 2


async def test_a_command_and_a_signal_tell_of_each_change(place: Path) -> None:
    script = "import sys; open(sys.argv[1], 'a').write(open(sys.argv[2]).read())"
    command = (sys.executable, "-c", script, str(place / "seen"), str(place / "tls" / "tls.crt"))
    (place / "web.pid").write_text("1\n")
    settings = settings_with_files(place, exec=command, signal_pid_file=place / "web.pid")
    async with running(settings) as agent:
        for number in (1, 2):
            await until(lambda number=number: len(agent.told("hook.failed")) == number)  # type: ignore[misc]
            agent.renew()
    assert [line["hook"] for line in agent.told("hook.finished")][:2] == ["exec", "exec"]
    assert {line["hook"] for line in agent.told("hook.failed")} == {"signal"}
    written = [line["serial"] for line in agent.told("output.written")]
    leaves = load_certificates((place / "seen").read_bytes())[::2]
    assert [f"{leaf.serial_number:x}" for leaf in leaves][:2] == written[:2]


async def test_after_a_restart_the_files_are_left_alone_and_the_command_runs_once(place: Path) -> None:
    settings = settings_with_files(place, exec=("true",))
    async with running(settings) as agent:
        await until(lambda: len(agent.told("hook.finished")) == 1)
    before = (place / "tls" / "..data").readlink()
    async with running(settings) as agent:
        await until(lambda: len(agent.told("hook.finished")) == 1)
        assert agent.told("output.written") == []
        assert (await agent.ready())[0] == 200
    assert (place / "tls" / "..data").readlink() == before


async def test_it_is_not_ready_while_the_files_are_not_written_and_goes_on_serving(place: Path) -> None:
    settings = settings_with_files(place)
    async with running(settings) as agent:
        await until(lambda: len(agent.told("output.written")) == 1)
        (place / "tls").rename(place / "away")
        agent.renew()
        await until(lambda: len(agent.told("output.failed")) > 0)
        status, text = await agent.ready()
        assert status == 503
        assert "[not ok] out: they are not those of the latest certificate" in text
        await until(lambda: len(agent.told("svid.renewed")) == 2)
        (place / "away").rename(place / "tls")
        await until(lambda: len(agent.told("output.written")) == 2)
        assert serial_in(place / "tls") == (await agent.svid()).serial
        assert (await agent.ready())[0] == 200


@pytest.mark.parametrize("name", ["tls.key", "..data"])
async def test_a_key_that_somebody_else_put_there_is_not_overwritten(place: Path, name: str) -> None:
    (place / "tls").mkdir()
    (place / "tls" / name).write_text("precious")
    with pytest.raises(CitadelError) as refused:
        async with running(settings_with_files(place)):
            pass
    assert refused.value.rule == "output_taken"
    assert (place / "tls" / name).read_text() == "precious"
