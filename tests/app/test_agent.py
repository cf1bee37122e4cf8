"""`agent` as a whole: it begins with what it has, gets what it lacks, and ends on a signal."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from citadel_py.app import agent as agent_module
from citadel_py.app import serve as serve_module
from citadel_py.config import AgentSettings, parse_address
from citadel_py.core.errors import CitadelError, InvalidConfiguration, Unauthenticated, Unavailable
from citadel_py.core.verify import verify_svid
from citadel_py.rotator.renewer import Renewer
from citadel_py.store.ledger import SQLLedger
from tests.app import serve_support
from tests.app.agent_support import WEB, running, settings_of
from tests.app.serve_support import Running, join_token, serving, write_authority
from tests.ca.support import until


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (agent_module, serve_module):
        monkeypatch.setattr(module, "configure", lambda *_: None)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name, for a Unix socket's path has few bytes."""
    with tempfile.TemporaryDirectory(prefix="citadel-") as path:
        yield Path(path)


@pytest.fixture
def directory(place: Path) -> Path:
    """An authority on disk."""
    write_authority(place / "ca")
    return place / "ca"


@pytest.fixture
async def service(directory: Path) -> AsyncIterator[Running]:
    async with serving(serve_support.settings_of(directory)) as running:
        yield running


@pytest.fixture
def local(place: Path, directory: Path) -> AgentSettings:
    """Without a service: the engine in the agent's process."""
    return settings_of(place, ca_dir=directory)


@pytest.fixture
def remote(place: Path, service: Running) -> AgentSettings:
    """With a service, and a join token for it."""
    (place / "token").write_text(join_token(service.directory, WEB) + "\n")
    address = parse_address(service.addresses["listen"])
    return settings_of(place, ca=address, ca_bundle=service.directory / "ca.crt", token_file=place / "token")


async def beginning(settings: AgentSettings) -> CitadelError:
    """The error with which it does not begin."""
    with pytest.raises(CitadelError) as failed:
        async with running(settings):
            pass
    return failed.value


# --- with the engine in the same process


async def test_it_serves_its_certificate_and_bundle_under_every_name(local: AgentSettings) -> None:
    async with running(local) as agent:
        assert (await agent.svid()).id == WEB
        assert (await agent.svid(str(WEB))).serial == (await agent.svid()).serial
        found = await agent.secrets("ALL", "spiffe://example.org", "ROOTCA")
        assert found["ALL"].validation_context.HasField("custom_validator_config")
        pems = {found[name].validation_context.trusted_ca.inline_bytes for name in ("spiffe://example.org", "ROOTCA")}
        assert len(pems) == 1


async def test_every_certificate_is_in_the_authoritys_ledger(local: AgentSettings, directory: Path) -> None:
    async with running(local) as agent:
        svid = await agent.svid()
    with SQLLedger.open(directory / "ledger.db", writer="offline") as ledger:
        (entry,) = ledger.entries(spiffe_id=WEB)
        assert (entry.serial, entry.method, entry.caller) == (svid.serial, "offline", f"agent:{WEB}")
        assert set(ledger.verify()) == {"agent"}


async def test_the_lifetime_is_as_wanted(place: Path, directory: Path) -> None:
    async with running(settings_of(place, ca_dir=directory, ttl=timedelta(minutes=3))) as agent:
        svid = await agent.svid()
    assert timedelta(minutes=2) < svid.not_after - svid.not_before <= timedelta(minutes=5)


async def test_it_is_ready_when_it_has_a_certificate_and_says_what_is_missing_until_then(
    local: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, run = asyncio.Event(), Renewer.run

    async def run_later(self: Renewer) -> None:
        await may_go_on.wait()
        await run(self)

    monkeypatch.setattr(Renewer, "run", run_later)
    async with running(local) as agent:
        status, text = await agent.ready()
        assert status == 503
        assert "[not ok] svid: there is none yet" in text
        assert "[ok] sds" in text
        may_go_on.set()
        await agent.svid()
        assert (await agent.ready())[0] == 200


async def test_a_renewal_reaches_proxies(local: AgentSettings) -> None:
    async with running(local) as agent:
        first = await agent.svid()
        agent.renew()
        await until(lambda: len(agent.told("svid.renewed")) == 2)
        assert (await agent.svid()).serial != first.serial


async def test_what_it_keeps_is_for_its_user_only(local: AgentSettings) -> None:
    async with running(local) as agent:
        await agent.svid()
        assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o660
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (local.state, *local.state.rglob("*"))}
    assert set(modes.values()) == {0o700, 0o600}, modes


# --- with a service


async def test_a_join_token_gives_the_first_certificate(remote: AgentSettings) -> None:
    async with running(remote) as agent:
        assert (await agent.svid()).id == WEB


async def test_after_a_restart_it_renews_by_certificate_although_its_token_is_used_up(
    remote: AgentSettings, service: Running
) -> None:
    async with running(remote) as agent:
        first = await agent.svid()
    async with running(remote) as agent:
        agent.renew()
        await until(lambda: bool(agent.told("svid.renewed")))
        assert (await agent.svid()).serial != first.serial
    with SQLLedger.open(service.directory / "ledger.db", writer="offline") as ledger:
        assert [entry.method for entry in ledger.entries(spiffe_id=WEB)] == ["join_token", "mtls"]


async def test_without_the_service_it_begins_with_what_it_has(remote: AgentSettings, service: Running) -> None:
    async with running(remote) as agent:
        before = await agent.svid()
    service.task.cancel()
    await asyncio.gather(service.task, return_exceptions=True)
    async with running(remote) as agent:
        assert (await agent.svid()).serial == before.serial
        assert (await agent.ready())[0] == 200
        assert agent.told("svid.loaded")


async def test_without_the_service_and_a_certificate_it_begins_and_goes_on_asking(place: Path, directory: Path) -> None:
    (place / "token").write_text(join_token(directory, WEB))
    nobody = parse_address("127.0.0.1:1")
    settings = settings_of(place, ca=nobody, ca_bundle=directory / "ca.crt", token_file=place / "token")
    async with running(settings) as agent:
        await until(lambda: len(agent.told("svid.renewal_failed")) == 2)
        failed = agent.told("svid.renewal_failed")[-1]
        assert failed["log_level"] == "error"
        assert "127.0.0.1:1" in str(failed["error"])
        assert (await agent.ready())[0] == 503


# --- beginning


async def test_a_damaged_state_is_set_aside_reported_and_replaced(local: AgentSettings) -> None:
    async with running(local) as agent:
        before = await agent.svid()
    (file,) = (local.state / "svids").iterdir()
    file.write_bytes(file.read_bytes().replace(b"chain", b"chian"))
    async with running(local) as agent:
        assert (await agent.svid()).serial != before.serial
        assert agent.told("svid.set_aside")
    assert any("corrupt" in path.name for path in (local.state / "svids").iterdir())


async def test_a_second_agent_cannot_have_the_same_state(local: AgentSettings, place: Path) -> None:
    async with running(local):
        other = local.model_copy(update={"sds": f"unix:{place}/run/other.sock"})
        assert (await beginning(other)).rule == "locked_by_another"


async def test_a_second_agent_cannot_have_the_same_socket(local: AgentSettings, place: Path) -> None:
    async with running(local) as agent:
        other = local.model_copy(update={"state": place / "other"})
        assert (await beginning(other)).rule == "socket_in_use"
        assert (await agent.svid()).id == WEB


async def test_an_authority_that_is_not_there_is_told_at_once_unless_a_certificate_is_held(
    local: AgentSettings, directory: Path, place: Path
) -> None:
    async with running(local) as agent:
        before = await agent.svid()
    shutil.move(directory, place / "elsewhere")
    async with running(local) as agent:
        assert (await agent.svid()).serial == before.serial
    error = await beginning(local.model_copy(update={"state": place / "new"}))
    assert isinstance(error, InvalidConfiguration)
    assert error.rule == "authority_missing"


async def test_what_another_authority_signed_is_replaced_at_once(local: AgentSettings, directory: Path) -> None:
    async with running(local) as agent:
        before = await agent.svid()
    bundle = write_authority(directory, force=True)
    async with running(local) as agent:
        await until(lambda: bool(agent.told("svid.renewed")))
        after = await agent.svid()
        assert agent.told("bundle.changed")
    assert after.authority_id != before.authority_id
    assert verify_svid(after.chain, bundle, now=datetime.now(UTC)).serial == after.serial


async def test_without_token_and_certificate_it_does_not_begin(place: Path, directory: Path) -> None:
    settings = settings_of(place, ca=parse_address("127.0.0.1:1"), ca_bundle=directory / "ca.crt")
    error = await beginning(settings)
    assert isinstance(error, Unauthenticated)
    assert error.rule == "no_credential"


async def test_a_socket_address_that_cannot_work_is_told_before_anything_is_made(place: Path, directory: Path) -> None:
    error = await beginning(settings_of(place, ca_dir=directory, sds="unix:" + "x" * 200))
    assert error.rule == "socket_path_too_long"
    assert not (place / "state").exists()


async def test_an_admin_address_that_is_taken_is_told(local: AgentSettings, service: Running) -> None:
    taken = local.model_copy(update={"admin": parse_address(service.addresses["admin"])})
    assert isinstance(await beginning(taken), Unavailable)


# --- ending


async def test_on_a_signal_it_ends_and_leaves_no_socket_behind(local: AgentSettings) -> None:
    async with running(local) as agent:
        await agent.svid()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            await agent.task
        assert list(agent.socket.parent.iterdir()) == []
        assert agent.log[-1]["event"] == "process.stopped"


async def test_it_can_be_started_again_right_after_it_ended(local: AgentSettings) -> None:
    serials = set()
    for _ in range(3):
        async with running(local) as agent:
            serials.add((await agent.svid()).serial)
    assert len(serials) == 1


async def test_a_renewer_that_dies_ends_the_agent_with_its_error(
    local: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(_self: Renewer) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Renewer, "run", die)
    with pytest.raises(RuntimeError, match="a bug"):
        async with running(local) as agent:
            await agent.task
    assert list(Path(local.served[0].place).parent.iterdir()) == []
