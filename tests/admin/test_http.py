from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from citadel_py.admin.http import AdminServer
from citadel_py.core.errors import Unavailable
from citadel_py.obs.metrics import CAMetrics

PROBLEMS: dict[str, str | None] = {"ledger": None, "authority": None}


@pytest.fixture
def problems() -> dict[str, str | None]:
    return dict(PROBLEMS)


@pytest.fixture
async def client(problems: dict[str, str | None]) -> AsyncIterator[aiohttp.ClientSession]:
    server = AdminServer("127.0.0.1", 0, checks=lambda: problems, metrics=CAMetrics())
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session
    await server.stop()


async def test_ready_while_every_check_is_well(client: aiohttp.ClientSession) -> None:
    async with client.get("/readyz") as reply:
        assert (reply.status, await reply.text()) == (200, "ok\n")


async def test_not_ready_while_one_check_is_not(client: aiohttp.ClientSession, problems: dict[str, str | None]) -> None:
    problems["ledger"] = "the disk is full"

    async with client.get("/readyz") as reply:
        assert (reply.status, await reply.text()) == (503, "not ready\n")


async def test_live_even_while_not_ready(client: aiohttp.ClientSession, problems: dict[str, str | None]) -> None:
    problems["ledger"] = "the disk is full"

    async with client.get("/livez") as reply:
        assert (reply.status, await reply.text()) == (200, "ok\n")


async def test_verbose_tells_every_check_in_words(
    client: aiohttp.ClientSession, problems: dict[str, str | None]
) -> None:
    problems["ledger"] = "the disk is full"

    async with client.get("/readyz?verbose") as reply:
        assert await reply.text() == "[not ok] ledger: the disk is full\n[ok] authority\nnot ready\n"


async def test_the_same_as_json(client: aiohttp.ClientSession, problems: dict[str, str | None]) -> None:
    problems["ledger"] = "the disk is full"

    async with client.get("/readyz", headers={"Accept": "application/json"}) as reply:
        assert reply.status == 503
        assert await reply.json() == {
            "version": 1,
            "ready": False,
            "checks": {"ledger": "the disk is full", "authority": None},
            "degraded": {},
        }


async def test_what_is_wrong_is_told_without_secrets(
    client: aiohttp.ClientSession, problems: dict[str, str | None]
) -> None:
    problems["keys"] = "refused with Bearer 0123456789abcdef"

    async with client.get("/readyz?verbose") as reply:
        assert "0123456789abcdef" not in await reply.text()


async def test_metrics_are_in_the_text_format_of_prometheus(client: aiohttp.ClientSession) -> None:
    async with client.get("/metrics") as reply:
        families = {family.name for family in text_string_to_metric_families(await reply.text())}

    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert {"citadel_build_info", "citadel_certificates_issued", "process_cpu_seconds"} <= families


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/nothing"])
async def test_answers_say_nothing_of_the_server_and_are_harmless_in_a_browser(
    client: aiohttp.ClientSession, path: str
) -> None:
    async with client.get(path) as reply:
        assert "Server" not in reply.headers
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_can_be_changed(client: aiohttp.ClientSession, method: str) -> None:
    async with client.request(method, "/readyz") as reply:
        assert reply.status == 405


async def test_an_endless_request_line_is_refused(client: aiohttp.ClientSession) -> None:
    async with client.get("/readyz?" + "x" * 10_000) as reply:
        assert reply.status == 400


async def test_an_address_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = AdminServer("127.0.0.1", taken.getsockname()[1], checks=dict, metrics=CAMetrics())

        with pytest.raises(Unavailable) as caught:
            await server.start()

    assert caught.value.rule == "listen_failed"
