"""`serve --workers` where processes are killed and files are bad: clients hardly notice, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from citadel_py.app import worker_process, worker_slot
from citadel_py.app.workers import serve_with_workers
from citadel_py.core.crl import Revoked, build_crl, crls_pem
from citadel_py.core.errors import Unavailable
from citadel_py.core.pem import load_certificates
from citadel_py.core.profile import Authority
from citadel_py.store.keys import read_key
from tests.app.serve_support import settings_of, write_authority
from tests.app.workers_support import Load, Workers, is_alive, token_issuer, workers
from tests.ca.support import HOUR, TokenIssuer

KILLS = 5


@pytest.fixture(scope="module")
def issuer() -> TokenIssuer:
    return token_issuer()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_authority(tmp_path / "D")
    return tmp_path / "D"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    put(tmp_path / "policy.toml", allow("first"))
    return tmp_path / "policy.toml"


def allow(name: str) -> str:
    rule = f'[[rule]]\nname = "{name}"\nwho.id = "spiffe://example.org/**"\n'
    return f'trust_domain = "example.org"\n{rule}'


def put(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


# ------------------------------------------------------------------------------------------------ kill -9


async def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(directory: Path, issuer: TokenIssuer) -> None:
    dice = random.Random(7)  # noqa: S311 - which one is killed, and when
    async with workers(directory, issuer) as service:
        load = Load(service, clients=6)
        async with load.running():
            for _ in range(KILLS):
                await load.more(dice.randint(1, 25))
                number, pid = dice.choice(sorted(service.pids().items()))
                os.kill(pid, signal.SIGKILL)
                told = f"[degraded] worker {number}: it died (signal 9, SIGKILL), starting again"
                assert (await service.until_told(told))[0] == 200
                await service.until_ready()
            await load.more()
        assert set(load.codes) <= {"UNAVAILABLE"}, "a code that clients do not repeat"
        assert set(load.serials) <= service.recorded()
        assert len(load.serials) == len(set(load.serials))
        assert set(service.verified_chains()) == {"serve-0", "serve-1"}
        assert len(service.of("worker.died")) == KILLS
        assert f"citadel_worker_restarts_total {KILLS}.0" in await service.metrics()


async def test_without_its_supervisor_no_worker_stays_and_a_restart_works_at_once(
    directory: Path, issuer: TokenIssuer
) -> None:
    async with workers(directory, issuer) as service:
        listen, pids = service.seen.addresses["listen"], service.pids()
        load = Load(service)
        async with load.running():
            await load.more()
            service.process.kill()
            service.process.wait()
        async with workers(directory, issuer, "--listen", listen) as again:
            await Load(again).once()
            async with asyncio.timeout(20):
                while any(map(is_alive, pids.values())):
                    await asyncio.sleep(0.01)
            assert set(load.serials) <= again.recorded()
            again.verified_chains()


async def test_a_worker_that_hangs_is_killed_and_replaced(directory: Path, issuer: TokenIssuer) -> None:
    async with workers(directory, issuer) as service:
        number, pid = next(iter(service.pids().items()))
        os.kill(pid, signal.SIGSTOP)
        await service.until_told(f"worker {number}: it did not answer")
        assert not is_alive(pid)
        await service.until_ready()


async def test_workers_that_all_end_as_soon_as_they_begin_are_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("citadel_py.app.workers.configure", lambda *_: None)
    monkeypatch.setattr(worker_process, "_MODULE", "this")
    monkeypatch.setattr(worker_slot, "FIRST_WAIT", timedelta(milliseconds=10))
    with pytest.raises(Unavailable) as caught:
        await serve_with_workers(settings_of(directory, workers=2))
    assert caught.value.rule == "worker_gone"
    assert "ended with code 0" in caught.value.message


# ------------------------------------------------------------------------------------------------ files


def crls(directory: Path) -> bytes:
    """Lists of the whole path, with one certificate on each."""
    now = datetime.now(UTC).replace(microsecond=0)
    authorities = []
    for place in ("root", "intermediate"):
        (certificate, *_) = load_certificates((directory / place / "tls.crt").read_bytes())
        authorities.append(Authority(certificate, read_key(directory / place / "tls.key", passphrase=None)))
    lists = [build_crl(each, [Revoked(7, now)], number=1, now=now, next_update=now + HOUR) for each in authorities]
    return crls_pem(lists)


async def signed_by(service: Workers) -> set[str]:
    """The authorities behind the certificates that both workers gave out just now."""
    load = Load(service)
    before = service.issued_by()
    async with load.running():
        await service.until(lambda: all(service.issued_by()[chain] > before[chain] + 3 for chain in before))
    return service.authorities_of(load.serials)


async def test_a_renewed_authority_reaches_all_and_a_bad_one_none(directory: Path, issuer: TokenIssuer) -> None:
    async with workers(directory, issuer) as service:
        async with (load := Load(service)).running():
            await service.until(lambda: set(service.issued_by()) == {"serve-0", "serve-1"})
        before = await signed_by(service)
        key = (directory / "intermediate" / "tls.key").read_bytes()
        (directory / "intermediate" / "tls.key").write_text("no key")
        service.process.send_signal(signal.SIGHUP)
        assert (await service.until_told("[degraded] authority: "))[0] == 200
        assert len(service.of("authority.rejected")) == 1
        assert await signed_by(service) == before
        assert 'citadel_worker_reloads_total{part="authority",result="rejected"} 1.0' in await service.metrics()

        (directory / "intermediate" / "tls.key").write_bytes(key)
        write_authority(directory, force=True)
        service.process.send_signal(signal.SIGHUP)
        await service.until(lambda: len(service.of("authority.activated")) == 4)
        await service.until_ready()
        after = await signed_by(service)
        assert len(after) == 1
        assert after != before
        assert not load.codes


async def test_rules_change_in_all_or_in_none_whatever_the_authority_does(
    directory: Path, policy: Path, issuer: TokenIssuer
) -> None:
    async with workers(directory, issuer, "--policy", policy) as service:
        put(policy, "nonsense")
        (directory / "intermediate" / "tls.key").rename(directory / "key")
        service.process.send_signal(signal.SIGHUP)
        await service.until_told("[degraded] policy: ")
        put(policy, allow("second"))
        service.process.send_signal(signal.SIGHUP)
        await service.until(lambda: {line["worker"] for line in service.of("policy.loaded")[2:]} == {0, 1})
        text = (await service.seen.ready())[1]
        assert "[ok] policy" in text
        assert "[degraded] authority" in text
        load = Load(service)
        async with load.running():
            await load.more()
        assert not load.codes
        ours = [line for line in service.of("rpc.finished") if line.get("serial") in load.serials]
        assert {line["decided_by"] for line in ours} == {"rule 1 (second)"}


async def test_revocations_reach_all_together_and_one_that_starts_later(directory: Path, issuer: TokenIssuer) -> None:
    async with workers(directory, issuer) as service:
        (directory / "crl.pem").write_bytes(crls(directory))
        await service.until(lambda: {line["worker"] for line in service.of("crls.loaded")} == {0, 1})
        activated = 'citadel_worker_reloads_total{part="revocations",result="activated"} 1.0'
        assert activated in await service.metrics()
        os.kill(service.pids()[0], signal.SIGKILL)
        await service.until(lambda: [line["worker"] for line in service.of("crls.loaded")].count(0) == 2)
        await service.until_ready()


async def test_a_worker_that_cannot_use_what_the_others_use_stays_out(directory: Path, issuer: TokenIssuer) -> None:
    async with workers(directory, issuer) as service:
        (directory / "bundle.json").rename(directory / "away")
        os.kill(service.pids()[1], signal.SIGKILL)
        status, _ = await service.until_told("[degraded] worker 1: it waits for files that it can use as the others do")
        assert status == 200
        await Load(service).once()
        (directory / "away").rename(directory / "bundle.json")
        await service.until_ready()


async def test_where_all_have_ended_they_begin_with_what_there_is_now(directory: Path, issuer: TokenIssuer) -> None:
    async with workers(directory, issuer) as service:
        await Load(service).once()
        (directory / "bundle.json").unlink()
        for pid in service.pids().values():
            os.kill(pid, signal.SIGKILL)
        status, text = await service.until_told("[degraded] authority: ")
        assert status == 503
        assert "[not ok] workers: none of 2 is ready" in text
        write_authority(directory, force=True)
        await service.until_ready()
        await Load(service).once()
