"""An agent with several sockets: who is served where, to whom a socket belongs, and what is kept of it all."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import socket as socket_module
import ssl
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from citadel_py.app import agent as agent_module
from citadel_py.app.agent_trust import AgentTrust
from citadel_py.app.federation import Federation
from citadel_py.app.runtime import utcnow
from citadel_py.app.served_socket import Entrance, ServedSocket, Trusted
from citadel_py.app.trust_reports import TrustReports
from citadel_py.config import AgentSettings, SocketSettings
from citadel_py.core.bundle import Bundle
from citadel_py.core.context_options import PeerMatcher
from citadel_py.core.errors import CitadelError, InvalidConfiguration, InvalidKey
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.trust import Trust
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.evidence import Evidence
from tests.app.agent_support import FREE, running
from tests.app.serve_support import write_authority
from tests.ca.support import TD, until
from tests.store.things import Pki, new_held, new_pki, ordinary_user

WEB, CART, PAY = (SpiffeID(TD, f"/ns/shop/sa/{name}") for name in ("web", "cart", "pay"))


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "configure", lambda *_: None)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="citadel-") as path:
        write_authority(Path(path) / "ca")
        yield Path(path)


def settings_of(place: Path, *sockets: dict[str, object], **changes: object) -> AgentSettings:
    """`path` of each is a name."""
    placed = [{**each, "path": f"unix:{place}/run/{each['path']}"} for each in sockets]
    base = {"ca_dir": place / "ca", "state": place / "state", "admin": FREE, "sockets": placed}
    return AgentSettings(**{**base, **changes})


async def test_each_socket_serves_its_identities_and_no_others(place: Path) -> None:
    settings = settings_of(place, {"path": "one", "identities": [WEB, CART]}, {"path": "two", "identities": [CART]})
    async with running(settings) as agent:
        one, two = (each.path for each in settings.served)
        found = await agent.svids("default", str(WEB), str(CART), socket=one)
        assert {name: svid.id for name, svid in found.items()} == {"default": WEB, str(WEB): WEB, str(CART): CART}
        other = await agent.svids("default", str(CART), socket=two)
        assert {svid.serial for svid in other.values()} == {found[str(CART)].serial}
        assert len(agent.told("svid.renewed")) == 2, "one certificate, however many sockets it is served on"


async def test_each_identity_is_renewed_by_itself(place: Path) -> None:
    settings = settings_of(place, {"path": "one", "identities": [WEB, CART]})
    async with running(settings) as agent:
        before = await agent.svids(str(WEB), str(CART))
        agent.made[-1].hurry(CART)
        await until(lambda: len(agent.told("svid.renewed")) == 3)
        after = await agent.svids(str(WEB), str(CART))
    assert after[str(WEB)].serial == before[str(WEB)].serial
    assert after[str(CART)].serial != before[str(CART)].serial


async def test_files_are_those_of_the_first_identity_of_their_socket(place: Path) -> None:
    settings = settings_of(
        place,
        {"path": "one", "identities": [WEB, CART], "out": place / "one"},
        {"path": "two", "identities": [PAY], "out": place / "two"},
    )
    async with running(settings) as agent:
        await until(lambda: len(agent.told("output.written")) == 2)
        assert {line["spiffe_id"] for line in agent.told("output.written")} == {str(WEB), str(PAY)}
        assert (place / "one" / "tls.crt").read_bytes() != (place / "two" / "tls.crt").read_bytes()


async def test_the_status_page_tells_of_each_identity(place: Path) -> None:
    settings = settings_of(place, {"path": "one", "identities": [WEB, CART]}, {"path": "two", "identities": [CART]})
    async with running(settings) as agent:
        await agent.svids(str(WEB), str(CART))
        status, text = await agent.page("/status")
        told = {each["spiffe_id"]: each["sockets"] for each in json.loads(text)["identities"]}
    one, two = (each.path for each in settings.served)
    assert (status, told) == (200, {str(WEB): [one], str(CART): [one, two]})


async def test_the_service_manager_is_told_when_all_sockets_listen_and_when_it_stops(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket_module.socket(socket_module.AF_UNIX, socket_module.SOCK_DGRAM) as manager:
        manager.bind(str(place / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(place / "notify"))
        async with running(settings_of(place, {"path": "one", "identities": [WEB]})):
            assert manager.recv(1000).startswith(b"READY=1")
        assert manager.recv(1000) == b"STOPPING=1"


async def test_a_socket_that_is_taken_is_told_and_the_others_are_given_back(place: Path) -> None:
    settings = settings_of(place, {"path": "one", "identities": [WEB]}, {"path": "two", "identities": [CART]})
    async with running(settings_of(place, {"path": "two", "identities": [CART]}, state=place / "other")):
        with pytest.raises(CitadelError) as failed:
            async with running(settings):
                pass
        assert failed.value.rule == "socket_in_use"
        assert not (place / "run" / "one").exists()


async def test_a_socket_is_served_to_other_machines_where_it_says_so(place: Path) -> None:
    settings = settings_of(place, {"path": "one", "identities": [WEB], "listen": "127.0.0.1:0", "keys_to": [CART]})
    async with running(settings) as agent:
        serial = (await agent.svid()).serial
        (served,) = agent.sockets
        await until(lambda: served.tcp_address is not None)
        host, _, port = str(served.tcp_address).rpartition(":")
        shown = await asyncio.to_thread(certificate_at, host, int(port))
        assert f"{shown.serial_number:x}" == serial


def certificate_at(host: str, port: int) -> x509.Certificate:
    """What is presented there, whoever asks."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket_module.create_connection((host, port)) as raw, context.wrap_socket(raw) as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")


# --- to whom a socket belongs


async def test_a_socket_is_given_to_its_user_and_group_before_it_is_opened(place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    name, gid = next((group.gr_name, group.gr_gid) for group in grp.getgrall() if group.gr_gid)
    settings = settings_of(place, {"path": "one", "identities": [WEB], "mode": "0620", "owner": 12345, "group": name})
    async with running(settings):
        state = (place / "run" / "one").stat()
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (12345, gid, 0o620)


async def test_an_account_that_is_not_there_is_told_before_anything_is_made(place: Path) -> None:
    settings = settings_of(place, {"path": "one", "identities": [WEB], "owner": "nobody-of-that-name"})
    with pytest.raises(InvalidConfiguration) as failed:
        async with running(settings):
            pass
    assert failed.value.rule == "account_unknown"
    assert "there is no user 'nobody-of-that-name'" in str(failed.value)
    assert not (place / "state").exists()


async def test_who_may_not_give_a_socket_away_is_told_how_to(place: Path) -> None:
    os.chmod(place, 0o777)  # noqa: PTH101, S103 - for whoever the test becomes
    server = served(SocketSettings(path=f"unix:{place}/mine/one", identities=(WEB,), owner=0))
    with ordinary_user():
        with pytest.raises(InvalidConfiguration) as failed:
            await server.start(None)  # type: ignore[arg-type]  # there are no files
        assert failed.value.rule == "socket_owner_not_permitted"
        assert not (place / "mine" / "one").exists()


# --- what is served


@pytest.fixture(scope="module")
def pki() -> Pki:
    return new_pki()


@pytest.fixture
def socket(place: Path) -> ServedSocket:
    peers = (PeerMatcher.parse(f"{TD.id}/ns/shop/**"),)
    settings = SocketSettings(path=f"unix:{place}/one", identities=(WEB, CART), peers=peers)
    return served(settings)


def served(settings: SocketSettings) -> ServedSocket:
    return ServedSocket(Entrance.of(settings), None, AgentMetrics(), reports=TrustReports(Evidence(time.monotonic)))


def names_of(socket: ServedSocket) -> set[str]:
    return set(vars(socket)["_hub"].snapshot)


def versions_of(socket: ServedSocket) -> dict[str, str]:
    return {name: resource.version for name, resource in vars(socket)["_hub"].snapshot.items()}


def test_while_the_first_identity_has_none_nobody_else_is_the_default(socket: ServedSocket, pki: Pki) -> None:
    trusted = Trusted(Trust(pki.bundle))
    socket.publish([new_held(pki, CART)], trusted)
    assert names_of(socket) == {"ROOTCA", "ALL", str(TD.id), str(CART)}
    socket.publish([new_held(pki, WEB)], trusted)
    assert names_of(socket) == {"ROOTCA", "ALL", str(TD.id), str(CART), str(WEB), "default"}


def test_programs_get_the_first_identity_first_whenever_it_came(socket: ServedSocket, pki: Pki) -> None:
    for id in (CART, WEB):
        socket.publish([new_held(pki, id)], Trusted(Trust(pki.bundle)))
    answers = vars(socket)["_workload"].answers
    assert answers.svids.index(str(WEB).encode()) < answers.svids.index(str(CART).encode())


def test_a_changed_bundle_changes_contexts_and_no_certificates(socket: ServedSocket, pki: Pki) -> None:
    socket.publish([new_held(pki, WEB), new_held(pki, CART)], Trusted(Trust(pki.bundle)))
    before = versions_of(socket)
    both = pki.bundle.with_authorities((*pki.bundle.authorities, *new_pki().bundle.authorities))
    socket.publish((), Trusted(Trust(both)))
    after = versions_of(socket)
    assert {name for name in after if after[name] != before[name]} == {"ROOTCA", "ALL", str(TD.id)}


def test_a_bundle_that_came_with_one_identity_is_everybodys(pki: Pki) -> None:
    trust = AgentTrust(Federation((), lambda: None), utcnow)
    other = new_pki().bundle
    assert trust.learn([new_held(pki, WEB)])
    trust.is_live = True
    newer = with_bundle(new_held(pki, CART), other)
    assert trust.learn([newer])
    assert trust.current is not None
    assert trust.current.own.bundle == other
    assert not trust.learn([newer])


def test_of_what_was_saved_the_bundle_that_came_last_counts(pki: Pki) -> None:
    old, new = new_held(pki, WEB), new_held(pki, CART)
    trust = AgentTrust(Federation((), lambda: None), utcnow)
    later = with_bundle(new, new_pki().bundle)
    assert trust.learn([later, old])
    assert not trust.learn([old])
    assert trust.current is not None
    assert trust.current.own.bundle == later.bundle


def with_bundle(held: HeldSVID, bundle: Bundle) -> HeldSVID:
    """As it was issued now."""
    return replace(held, bundle=bundle, issued_at=utcnow())


# --- what is kept


async def test_with_a_passphrase_nothing_of_the_state_can_be_read_and_a_restart_finds_it(place: Path) -> None:
    (place / "passphrase").write_text("correct horse\n")
    settings = settings_of(
        place, {"path": "one", "identities": [WEB, CART]}, state_passphrase_file=place / "passphrase"
    )
    async with running(settings) as agent:
        before = await agent.svids(str(WEB), str(CART))
    kept = [path.read_text() for path in (place / "state" / "svids").iterdir()]
    assert len(kept) == 2
    assert not any("BEGIN" in text for text in kept)
    async with running(settings) as agent:
        after = await agent.svids(str(WEB), str(CART))
        assert not agent.told("svid.renewed")
    assert {name: svid.serial for name, svid in after.items()} == {name: svid.serial for name, svid in before.items()}


@pytest.mark.parametrize("given", ["wrong", None])
async def test_a_wrong_passphrase_is_told_at_the_start_and_nothing_is_replaced(place: Path, given: str | None) -> None:
    (place / "passphrase").write_text("correct horse\n")
    sockets: dict[str, object] = {"path": "one", "identities": [WEB]}
    async with running(settings_of(place, sockets, state_passphrase_file=place / "passphrase")) as agent:
        await agent.svid()
    before = {path.name: path.read_bytes() for path in (place / "state" / "svids").iterdir()}
    (place / "passphrase").write_text(given or "")
    with pytest.raises(InvalidKey):
        async with running(settings_of(place, sockets, state_passphrase_file=place / "passphrase" if given else None)):
            pass
    assert {path.name: path.read_bytes() for path in (place / "state" / "svids").iterdir()} == before
