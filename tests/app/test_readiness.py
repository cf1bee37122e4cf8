"""What readiness and degradation say of a service, and in which forms."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from citadel_py.app import serve as serve_module
from citadel_py.app.readiness import Readiness, authority_problem
from citadel_py.ca.group_commit import GroupCommit
from citadel_py.core.policy import Policy, TTLLimits
from citadel_py.obs.metrics import CAMetrics
from citadel_py.store.ledger import SQLLedger
from tests.app.serve_support import Running, serving, settings_of, write_authority
from tests.ca.support import TD, make_engine
from tests.store.things import entry

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "configure", lambda *_: None)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_authority(tmp_path / "D")
    return tmp_path / "D"


async def until_it_says(service: Running, status: int, words: str) -> str:
    async with asyncio.timeout(30):
        while True:
            found, text = await service.ready()
            if found == status and words in text:
                return text
            await asyncio.sleep(0.01)


async def metrics(service: Running) -> list[str]:
    url = f"http://{service.addresses['admin']}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        return (await reply.text()).splitlines()


async def until_metric(service: Running, line: str) -> None:
    async with asyncio.timeout(30):
        while line not in await metrics(service):
            await asyncio.sleep(0.01)


async def test_it_is_ready_once_a_certificate_has_come_from_itself(directory: Path) -> None:
    async with serving(settings_of(directory, probe_every=timedelta(minutes=1))) as service:
        await until_it_says(service, 200, "[ok] self-probe")
        with SQLLedger.open(directory / "ledger.db", writer="test") as ledger:
            methods = [each.method for each in ledger.entries() if each.spiffe_id.endswith("/citadel-py/probe")]
        assert methods == ["self", "mtls"]
        await until_metric(service, 'citadel_check_ok{check="self-probe"} 1.0')
        assert 'citadel_probes_total{result="issued"} 1.0' in await metrics(service)


async def test_join_tokens_that_cannot_be_used_are_told_by_every_kind_of_health(directory: Path) -> None:
    async with serving(settings_of(directory, probe_every=timedelta(seconds=1))) as service:
        await until_it_says(service, 200, "[ok] self-probe")
        with sqlite3.connect(directory / "ledger.db", isolation_level=None) as database:
            database.execute("DROP TABLE join_tokens")
        database.close()
        await until_it_says(service, 503, "[not ok] ledger: cannot use the ledger")
        await until_metric(service, 'citadel_check_ok{check="ledger"} 0.0')
        async with service.channel() as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            names = ("", "istio.v1.auth.IstioCertificateService", "check/ledger", "check/listening")
            found = [(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names]
        assert found == [NOT_SERVING, NOT_SERVING, NOT_SERVING, SERVING]


async def test_a_clock_that_is_far_behind_the_ledger_is_told_at_the_start(directory: Path) -> None:
    with SQLLedger.open(directory / "ledger.db", writer="once-ahead") as ledger:
        ledger.append([entry(time=datetime.now(UTC) + 2 * DAY)])
    async with serving(settings_of(directory)) as service:
        text = await until_it_says(service, 503, "[not ok] clock: it says ")
        assert "1d23h59m" in text
    async with serving(settings_of(directory, trust_clock=True)) as service:
        await until_it_says(service, 200, "[ok] clock")


# ------------------------------------------------------------------------------------------------ by itself


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLLedger]:
    with SQLLedger.open(tmp_path / "ledger.db", writer="serve") as ledger:
        yield ledger


def readiness_of(ledger: SQLLedger, *, default_ttl: timedelta, metrics: CAMetrics | None = None) -> Readiness:
    """On an authority with a thousand hours left."""
    limits = TTLLimits(default=default_ttl)
    engine = replace(make_engine(datetime.now(UTC)), policy=Policy(TD, limits))
    return Readiness(
        settings_of(Path(os.devnull)),
        lambda: engine,
        ledger=ledger,
        commits=GroupCommit(ledger),
        thread=None,
        metrics=metrics or CAMetrics(),
    )


def test_an_authority_with_less_left_than_certificates_want_is_a_degradation(ledger: SQLLedger) -> None:
    short, enough = (readiness_of(ledger, default_ttl=ttl).degraded()["authority life"] for ttl in (1001 * HOUR, HOUR))
    assert (short or "").endswith("so that certificates get less than 41d17h")
    assert enough is None


def test_an_authority_outside_its_time_is_a_problem_in_words() -> None:
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    issuer = make_engine(now).issuer
    assert [bool(authority_problem(issuer, now + by)) for by in (-2 * HOUR, -HOUR, 999 * HOUR, 1000 * HOUR)] == [
        True,
        False,
        False,
        True,
    ]
    assert (
        authority_problem(issuer, now - 2 * HOUR)
        == "it begins at 2026-03-04T04:06:07Z, and the clock says 2026-03-04T03:06:07Z"
    )


async def test_a_jump_of_the_clock_is_counted_and_told(ledger: SQLLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = CAMetrics()
    readiness = readiness_of(ledger, default_ttl=HOUR, metrics=metrics)
    await readiness.begin()
    monkeypatch.setattr("citadel_py.app.readiness.utcnow", lambda: datetime.now(UTC) - HOUR / 2)
    readiness.look()
    assert "29m59s before the newest moment" in (readiness.degraded()["clock steadiness"] or "")
    assert b'citadel_clock_jumps_total{direction="back"} 1.0' in metrics.exposition()
