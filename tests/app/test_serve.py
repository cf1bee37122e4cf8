"""`serve` as a whole: it begins, is ready, follows its files, and ends on a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from citadel_py.app import serve as serve_module
from citadel_py.config import ServeSettings, parse_address
from citadel_py.core.errors import CitadelError, InvalidConfiguration, InvalidKey, Unavailable
from citadel_py.core.ledger_heads import authority_keys
from citadel_py.core.spiffe import TrustDomain
from citadel_py.store import authority_dir
from citadel_py.store.ledger import SQLLedger
from tests.app.serve_support import ID, Running, join_token, serving, settings_of, write_authority
from tests.ca.support import AUDIENCE, ISSUER, Clock, TokenIssuer, call, until


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "configure", lambda *_: None)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An authority on disk."""
    write_authority(tmp_path / "D")
    return tmp_path / "D"


@pytest.fixture
async def service(directory: Path) -> AsyncIterator[Running]:
    async with serving(settings_of(directory)) as running:
        yield running


async def test_it_is_ready_and_issues(service: Running) -> None:
    status, text = await service.ready()
    assert status == 200, text
    svid = service.verified(await service.ask(join_token(service.directory)))
    assert svid.id == ID


async def test_it_tells_the_addresses_that_it_got(service: Running) -> None:
    addresses = [service.addresses[name] for name in ("listen", "listen_mtls", "admin")]
    ports = {parse_address(address).port for address in addresses}
    assert len(ports) == 3
    assert 0 not in ports


async def test_the_ledger_holds_one_chain_of_the_service_beside_others(service: Running) -> None:
    svid = service.verified(await service.ask(join_token(service.directory)))
    with SQLLedger.open(service.directory / "ledger.db", writer="offline") as ledger:
        (entry,) = ledger.entries(spiffe_id=ID)
        assert entry.serial == svid.serial
        assert set(ledger.verify()) == {"serve"}


async def test_two_services_on_one_directory_share_ledger_and_tokens(directory: Path) -> None:
    async with serving(settings_of(directory)) as one, serving(settings_of(directory)) as other:
        token = join_token(directory)
        one.verified(await one.ask(token))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await other.ask(token)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        other.verified(await other.ask(join_token(directory)))
    with SQLLedger.open(directory / "ledger.db", writer="offline") as ledger:
        assert ledger.verify()["serve"].position == 4


async def test_while_the_ledger_cannot_be_written_it_is_not_ready_and_says_why(service: Running) -> None:
    token = join_token(service.directory)
    lock = sqlite3.connect(service.directory / "ledger.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.ask(token)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        status, text = await service.ready()
        assert status == 503
        assert "[not ok] ledger: " in text
        assert "database is locked" in text
    finally:
        lock.close()
    service.verified(await service.ask(token))  # neither was the token used up
    assert (await service.ready())[0] == 200


# ------------------------------------------------------------------------------------------------ tokens of an issuer


@pytest.fixture(scope="module")
def issuer() -> TokenIssuer:
    return TokenIssuer(rsa.generate_private_key(public_exponent=65537, key_size=2048), Clock())


def with_jwt(directory: Path, jwks: str) -> ServeSettings:
    return settings_of(directory, jwt_issuer=ISSUER, jwt_jwks=jwks, jwt_audience=AUDIENCE)


async def test_tokens_of_the_configured_issuer_are_accepted(
    directory: Path, tmp_path: Path, issuer: TokenIssuer
) -> None:
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    async with serving(with_jwt(directory, str(jwks))) as service:
        svid = service.verified(await service.ask(issuer.token()))
        assert str(svid.id) == "spiffe://example.org/ns/shop/sa/cart"
        assert (await service.ready())[0] == 200


async def test_an_issuer_that_is_away_at_the_start_makes_it_not_ready_and_no_more(directory: Path) -> None:
    async with serving(with_jwt(directory, "http://127.0.0.1:1/keys")) as service:
        status, text = await service.ready()
        assert status == 503
        assert "[not ok] jwt keys: http://127.0.0.1:1/keys" in text
        service.verified(await service.ask(join_token(directory)))


async def test_issuer_keys_that_cannot_work_are_an_error_at_the_start(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text("{}")
    for place in (str(tmp_path / "jwks.json"), str(tmp_path / "absent.json"), "http://issuer.example/keys"):
        with pytest.raises(InvalidConfiguration):
            await serve_module.serve(with_jwt(directory, place))


# ------------------------------------------------------------------------------------------------ the authority's files


def rotations(service: Running) -> list[str]:
    """Serial numbers of the serving certificates so far."""
    return [line["serial"] for line in service.events if line["event"] == "serving_certificate.rotated"]


async def test_a_replaced_authority_signs_after_sighup(service: Running) -> None:
    before = service.verified(await service.ask(join_token(service.directory)))
    write_authority(service.directory, force=True)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: len(rotations(service)) == 2)
    after = service.verified(await service.ask(join_token(service.directory)))
    assert after.authority_id != before.authority_id


async def test_sighup_loads_files_again_that_did_not_change(service: Running) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: [line["event"] for line in service.events].count("authority.activated") == 2)
    assert (await service.ready())[0] == 200


async def test_an_authority_that_is_broken_on_disk_changes_nothing(service: Running) -> None:
    bundle = service.bundle()
    (service.directory / "intermediate" / "tls.key").write_text("no key")
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: any(line["event"] == "authority.rejected" for line in service.events))
    svid = service.verified(await service.ask(join_token(service.directory)))
    assert svid.authority_id
    assert service.bundle() == bundle
    assert (await service.ready())[0] == 200


async def test_an_authority_of_another_trust_domain_is_not_taken_over(service: Running) -> None:
    write_authority(service.directory, force=True, trust_domain=TrustDomain("other.org"))
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: any(line.get("rule") == "trust_domain_changed" for line in service.events))
    assert (await service.ready())[0] == 200


async def test_files_that_change_are_noticed_without_a_signal(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("citadel_py.app.authority.LOOK_EVERY", timedelta(milliseconds=5))
    async with serving(settings_of(directory)) as service:
        write_authority(directory, force=True)
        await until(lambda: [line["event"] for line in service.events].count("authority.activated") >= 2)
        await until(lambda: len(rotations(service)) >= 2)
        service.verified(await service.ask(join_token(directory)))


async def test_an_encrypted_key_opens_with_the_passphrase_file(tmp_path: Path) -> None:
    write_authority(tmp_path / "D", passphrase=b"long enough")
    (tmp_path / "passphrase").write_bytes(b"long enough\n")
    (tmp_path / "wrong").write_bytes(b"wrong\n")
    (tmp_path / "empty").write_bytes(b"\n")
    async with serving(settings_of(tmp_path / "D", passphrase_file=tmp_path / "passphrase")) as service:
        service.verified(await service.ask(join_token(tmp_path / "D")))
    for file, rule in (("wrong", "key_passphrase_wrong"), ("empty", "passphrase_empty")):
        with pytest.raises(CitadelError) as caught:
            await serve_module.serve(settings_of(tmp_path / "D", passphrase_file=tmp_path / file))
        assert caught.value.rule == rule
    with pytest.raises(InvalidKey) as missing:
        await serve_module.serve(settings_of(tmp_path / "D"))
    assert missing.value.rule == "key_passphrase_missing"


# ------------------------------------------------------------------------------------------------ what cannot begin


async def test_a_lifetime_beyond_the_authoritys_is_an_error_at_the_start(directory: Path) -> None:
    days = timedelta(days=60)  # the authority has 1000 hours
    with pytest.raises(InvalidConfiguration) as caught:
        await serve_module.serve(settings_of(directory, default_ttl=days, max_ttl=days))
    assert caught.value.rule == "ttl_beyond_authority"


async def test_without_an_authority_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        await serve_module.serve(settings_of(tmp_path / "D"))
    assert caught.value.rule == "authority_missing"
    assert not (tmp_path / "D" / "ledger.db").exists()


@pytest.mark.parametrize("which", ["listen", "listen_mtls", "admin"])
async def test_an_address_that_is_taken_is_an_error_at_the_start(service: Running, which: str) -> None:
    taken = parse_address(service.addresses["listen"])
    with pytest.raises(Unavailable) as caught:
        await serve_module.serve(settings_of(service.directory, **{which: taken}))
    assert caught.value.rule == "listen_failed"


async def test_a_ledger_of_another_kind_is_an_error_at_the_start(directory: Path) -> None:
    (directory / "ledger.db").write_bytes(b"not a database" * 100)
    with pytest.raises(Unavailable):
        await serve_module.serve(settings_of(directory))


async def test_a_server_name_that_is_none_is_an_error_at_the_start(directory: Path) -> None:
    with pytest.raises(CitadelError) as caught:
        await serve_module.serve(settings_of(directory, server_name=("no name",)))
    assert caught.value.rule == "invalid_dns_name"


# ------------------------------------------------------------------------------------------------ the end


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(directory: Path, received: signal.Signals) -> None:
    async with serving(settings_of(directory)) as service:
        os.kill(os.getpid(), received)
        async with asyncio.timeout(10):
            await service.task
        names = [line["event"] for line in service.events if line["event"] != "ledger.signed"]
        assert names[-3:] == ["signal.received", "server.stopped", "process.stopped"]


async def test_what_it_issued_is_signed_when_it_has_stopped(directory: Path) -> None:
    async with serving(settings_of(directory)) as service:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await service.task
        signed = [line for line in service.events if line["event"] == "ledger.signed"]
    with SQLLedger.open(directory / "ledger.db", writer="test") as ledger:
        chain = ledger.verify(authority_keys(authority_dir.certificates(directory)))["serve"]
    assert chain.signed_to == chain.position == signed[-1]["position"] == 1


async def test_under_load_a_signal_loses_no_request(directory: Path, tmp_path: Path, issuer: TokenIssuer) -> None:
    (tmp_path / "jwks.json").write_bytes(issuer.jwks())
    serials: list[str] = []
    codes: set[str] = set()

    async with serving(with_jwt(directory, str(tmp_path / "jwks.json"))) as service:

        async def client(channel: grpc.aio.Channel, number: int) -> None:
            token = issuer.token(sub=f"system:serviceaccount:shop:cart-{number}")
            while not codes:
                try:
                    reply = await call(channel, token=token)
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code().name)
                else:
                    serials.append(service.verified(reply).serial)

        async with service.channel() as channel:
            clients = asyncio.gather(*(client(channel, number) for number in range(16)))
            await until(lambda: len(serials) > 50)
            os.kill(os.getpid(), signal.SIGTERM)
            await clients
        await service.task
    assert codes == {"UNAVAILABLE"}
    with SQLLedger.open(directory / "ledger.db", writer="offline") as ledger:
        assert sorted(entry.serial for entry in ledger.entries() if entry.method == "jwt") == sorted(serials)


async def test_its_health_follows_its_readiness(service: Running) -> None:
    async with service.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await service.task


# ------------------------------------------------------------------------------------------------ the service manager


async def test_the_service_manager_is_told_when_it_is_ready_reloads_and_stops(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        loop = asyncio.get_running_loop()

        async def next_word() -> str:
            while (word := (await loop.sock_recv(manager, 1000)).decode()) == "WATCHDOG=1":
                pass
            return word.splitlines()[0]

        async with serving(settings_of(directory)) as service:
            async with asyncio.timeout(10):
                assert await next_word() == "READY=1"
                assert await loop.sock_recv(manager, 1000) == b"WATCHDOG=1"
                os.kill(os.getpid(), signal.SIGHUP)
                assert [await next_word() for _ in range(2)] == ["RELOADING=1", "READY=1"]
                os.kill(os.getpid(), signal.SIGTERM)
                assert await next_word() == "STOPPING=1"
                await service.task
