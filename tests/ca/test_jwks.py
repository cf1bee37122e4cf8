"""Key sets from files and URLs: current, bounded, and never lost once they were good."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.typing import EventDict
from yarl import URL

from citadel_py.ca.issuer_keys import MAX_DOCUMENT_BYTES
from citadel_py.ca.jwks import MAX_WAITING, JwksSource, fetch, jwks_source, read_file, trusted_url
from citadel_py.core.errors import InvalidConfiguration, NotReady, Unavailable
from tests.ca.support import Clock, TokenIssuer, until

HOUR = timedelta(hours=1)


@pytest.fixture
def one(token_key: rsa.RSAPrivateKey) -> bytes:
    return TokenIssuer(token_key, Clock(), kid="one").jwks()


@pytest.fixture
def two(token_key: rsa.RSAPrivateKey) -> bytes:
    return TokenIssuer(token_key, Clock(), kid="two").jwks()


class Place:
    """What a source reads; `reading` is set while a read waits for `go_on`."""

    def __init__(self, document: bytes) -> None:
        self.document = document
        self.reads = 0
        self.reading = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def read(self) -> bytes:
        self.reads += 1
        self.reading.set()
        await self.go_on.wait()
        return self.document

    def pause(self) -> None:
        self.reading.clear()
        self.go_on.clear()


def kids(source: JwksSource) -> list[str | None]:
    return [key.kid for key in source.keys.keys]


@asynccontextmanager
async def running(source: JwksSource) -> AsyncIterator[JwksSource]:
    task = asyncio.create_task(source.run())
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ------------------------------------------------------------------------------------------------ the source


async def test_before_the_first_good_read_there_are_no_keys(one: bytes) -> None:
    place = Place(one)
    source = JwksSource("place", place.read, every=HOUR)
    with pytest.raises(NotReady) as caught:
        _ = source.keys
    assert caught.value.rule == "jwt_keys_missing"
    assert source.problem is not None
    await source.load()
    assert kids(source) == ["one"]
    assert source.problem is None


async def test_the_last_good_keys_stay_when_new_ones_are_bad(one: bytes, log: list[EventDict]) -> None:
    place = Place(one)
    async with running(JwksSource("place", place.read, every=HOUR, pause=timedelta(0))) as source:
        await source.load()
        place.document = b"{}"
        await source.catch_up()
        assert kids(source) == ["one"]
        assert source.problem is not None
        assert [line["rule"] for line in log if line["event"] == "jwks.failed"] == ["jwks_unusable"]
        place.document = one
        await source.catch_up()
        assert source.problem is None


async def test_keys_are_read_again_on_a_timer(one: bytes, two: bytes) -> None:
    place = Place(one)
    async with running(JwksSource("place", place.read, every=timedelta(milliseconds=5))) as source:
        await until(lambda: source.problem is None)
        place.document = two
        await until(lambda: kids(source) == ["two"])


async def test_the_same_document_is_not_parsed_again(one: bytes) -> None:
    place = Place(one)
    source = JwksSource("place", place.read, every=HOUR)
    await source.load()
    before = source.keys
    await source.load()
    assert source.keys is before
    assert place.reads == 2


async def test_catching_up_reads_at_once(one: bytes, two: bytes) -> None:
    place = Place(one)
    async with running(JwksSource("place", place.read, every=HOUR, pause=timedelta(0))) as source:
        await source.load()
        place.document = two
        await source.catch_up()
        assert kids(source) == ["two"]


async def test_catching_up_too_often_reads_nothing(one: bytes) -> None:
    place, clock = Place(one), [100.0]
    source = JwksSource("place", place.read, every=HOUR, pause=timedelta(seconds=10), monotonic=lambda: clock[0])
    async with running(source):
        await source.load()
        clock[0] += 9
        await source.catch_up()
        assert place.reads == 1
        clock[0] += 1
        await source.catch_up()
        assert place.reads == 2


async def test_all_who_wait_share_one_read(one: bytes, two: bytes) -> None:
    place = Place(one)
    async with running(JwksSource("place", place.read, every=HOUR, pause=timedelta(0))) as source:
        await source.load()
        place.pause()
        waiting = [asyncio.create_task(source.catch_up()) for _ in range(10)]
        await place.reading.wait()
        waiting[0].cancel()  # whoever asked first may leave
        place.document = two
        place.go_on.set()
        await asyncio.gather(*waiting[1:])
        assert place.reads == 2
        assert kids(source) == ["two"]


async def test_no_more_than_a_few_wait_at_a_time(one: bytes) -> None:
    place = Place(one)
    async with running(JwksSource("place", place.read, every=HOUR, pause=timedelta(0))) as source:
        await source.load()
        place.pause()
        waiting = [asyncio.create_task(source.catch_up()) for _ in range(MAX_WAITING)]
        await place.reading.wait()
        await source.catch_up()  # one too many: it returns while the read is still going on
        assert not any(task.done() for task in waiting)
        place.go_on.set()
        await asyncio.gather(*waiting)


# ------------------------------------------------------------------------------------------------ files


async def test_a_file_that_was_replaced_is_noticed_by_its_content(tmp_path: Path, one: bytes, two: bytes) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(one)
    before = path.stat()
    source = jwks_source(str(path))
    await source.load()
    path.write_bytes(two)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    await source.load()
    assert kids(source) == ["two"]


async def test_a_file_that_is_gone_takes_no_keys_away(tmp_path: Path, one: bytes) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(one)
    source = jwks_source(str(path))
    await source.load()
    path.unlink()
    with pytest.raises(InvalidConfiguration, match=r"jwks\.json"):
        await source.load()
    assert kids(source) == ["one"]


async def test_a_file_without_end_is_read_up_to_the_bound() -> None:
    assert len(await read_file(Path("/dev/zero"))) == MAX_DOCUMENT_BYTES + 1


# ------------------------------------------------------------------------------------------------ URLs


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example/keys",
        "http://localhost:1/keys",
        "http://127.0.0.1/keys",
        "http://127.8.8.8/",
        "http://[::1]:8/",
    ],
)
def test_keys_may_come_over_tls_or_from_this_machine(url: str) -> None:
    assert str(trusted_url(url)) == url


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://issuer.example/keys", "jwks_url_insecure"),
        ("http://10.0.0.1/keys", "jwks_url_insecure"),
        ("http://localhost.example/keys", "jwks_url_insecure"),
        ("http://127.0.0.1.example/keys", "jwks_url_insecure"),
        ("ftp://localhost/keys", "jwks_url_insecure"),
        ("file:///etc/passwd", "jwks_url_insecure"),
        ("https://", "jwks_url_insecure"),
        ("https://user:password@issuer.example/keys", "jwks_url_credentials"),
        ("https://[issuer/keys", "jwks_url_insecure"),
        ("http://localhost\\@issuer.example/keys", "jwks_url_insecure"),
        ("http://issuer.example#@localhost/", "jwks_url_insecure"),
    ],
)
def test_keys_that_could_be_replaced_on_their_way_are_refused(url: str, rule: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        jwks_source(url)
    assert caught.value.rule == rule


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def http_server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[URL]:
    app = web.Application()
    app.router.add_get("/keys", handler)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        port = runner.addresses[0][1]
        yield URL(f"{'https' if tls else 'http'}://127.0.0.1:{port}/keys")
    finally:
        await runner.cleanup()


async def test_keys_come_from_a_url(one: bytes) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=one)

    async with http_server(answer) as url:
        source = jwks_source(str(url))
        await source.load()
        assert kids(source) == ["one"]


async def test_over_tls_the_server_must_be_known(one: bytes) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=one)

    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    async with http_server(answer, server) as url:
        with pytest.raises(Unavailable):
            await fetch(url)
        authority.configure_trust(client)
        assert await fetch(url, tls=client) == one


async def test_a_redirect_is_not_followed(one: bytes) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        if "again" in request.query:
            return web.Response(body=one)
        raise web.HTTPFound("/keys?again")

    async with http_server(answer) as url:
        with pytest.raises(Unavailable, match="status 302"):
            await fetch(url)
    assert asked == ["/keys"]


@pytest.mark.parametrize("status", [204, 404, 500])
async def test_another_status_is_no_document(status: int) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with http_server(answer) as url:
        with pytest.raises(Unavailable, match=f"status {status}"):
            await fetch(url)


async def test_an_answer_without_end_is_read_up_to_the_bound() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    async with http_server(answer) as url:
        body = await fetch(url)
        assert MAX_DOCUMENT_BYTES < len(body) <= MAX_DOCUMENT_BYTES + 65536
        with pytest.raises(InvalidConfiguration):
            await jwks_source(str(url)).load()


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    release = asyncio.Event()

    async def answer(_request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with http_server(answer) as url:
        with pytest.raises(Unavailable) as caught:
            await fetch(url, within=timedelta(milliseconds=50))
        release.set()
    assert caught.value.rule == "jwks_unreachable"


async def test_where_nobody_listens_the_keys_are_unavailable() -> None:
    with pytest.raises(Unavailable):
        await fetch(URL("http://127.0.0.1:1/keys"))
