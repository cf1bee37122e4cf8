"""Where an issuer's keys come from: a file or a URL, read again and again. The last good set wins.

A request never waits for a file or a network unless it names a key that nobody knows, and then
only as long as one shared attempt takes. Redirects are not followed: the URL is the trust.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import aiohttp
from yarl import URL  # the parser that aiohttp uses: what was checked is what is asked

from citadel_py.ca.issuer_keys import MAX_DOCUMENT_BYTES, KeySet, fingerprint
from citadel_py.core.errors import CitadelError, InvalidConfiguration, NotReady, Unavailable
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger

ReadDocument: TypeAlias = Callable[[], Awaitable[bytes]]

FILE_INTERVAL = timedelta(seconds=10)
URL_INTERVAL = timedelta(minutes=5)
FETCH_TIMEOUT = timedelta(seconds=5)
MAX_WAITING = 64  # requests that wait for one attempt; callers are not authenticated yet

_log = get_logger()


class JwksSource:
    """Keeps a KeySet current. `run` does the work; everything else only looks or asks.

    `name` is the path or URL, for messages. An attempt is made every `every`, and at once when a
    key is missing, but not within `pause` of the last attempt.
    """

    def __init__(
        self,
        name: str,
        read: ReadDocument,
        *,
        every: timedelta,
        pause: timedelta = timedelta(seconds=10),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._read = read
        self._every = every
        self._pause = pause
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._problem: str | None = f"the keys of {name} have not been read yet"
        self._attempted_at = float("-inf")
        self._wanted = asyncio.Event()
        self._attempt: asyncio.Future[None] | None = None
        self._waiting = 0

    @property
    def keys(self) -> KeySet:
        """The last good set. Raises NotReady while there never was one."""
        if self._keys is None:
            raise NotReady(self._problem or "", rule="jwt_keys_missing")
        return self._keys

    @property
    def has_keys(self) -> bool:
        """True once there was a good set."""
        return self._keys is not None

    @property
    def problem(self) -> str | None:
        """Why the last attempt failed; None when it succeeded."""
        return self._problem

    async def load(self) -> None:
        """Read once. Raises InvalidConfiguration or Unavailable; the last good set stays."""
        self._attempted_at = self._monotonic()
        try:
            document = await self._read()
            if self._keys is None or self._keys.fingerprint != fingerprint(document):
                self._keys = KeySet.parse(document)
                _log.info(events.JWKS_LOADED, source=self._name, keys=len(self._keys.keys))
        except CitadelError as error:
            self._problem = f"{self._name}: {error}"
            raise
        self._problem = None

    async def catch_up(self) -> None:
        """Return after an attempt that was made because of this call, or at once where that was too recent."""
        if self._attempt is None:
            if self._monotonic() - self._attempted_at < self._pause.total_seconds():
                return
            self._attempt = asyncio.get_running_loop().create_future()
            self._wanted.set()
        if self._waiting >= MAX_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.shield(self._attempt)
        finally:
            self._waiting -= 1

    async def run(self) -> None:
        """Keep the set current until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every.total_seconds()):
                    await self._wanted.wait()
            self._wanted.clear()
            self._attempt = self._attempt or asyncio.get_running_loop().create_future()
            try:
                await self._try_to_load()
            finally:
                attempt, self._attempt = self._attempt, None
                attempt.set_result(None)

    async def _try_to_load(self) -> None:
        try:
            await self.load()
        except CitadelError as error:
            _log.warning(events.JWKS_FAILED, source=self._name, error=str(error), rule=error.rule)


def jwks_source(place: str) -> JwksSource:
    """A source for a path or URL. Raises InvalidConfiguration for a URL that cannot be trusted."""
    if "://" not in place:
        path = Path(place)
        return JwksSource(place, lambda: read_file(path), every=FILE_INTERVAL, pause=timedelta(seconds=1))
    url = trusted_url(place)
    return JwksSource(place, lambda: fetch(url), every=URL_INTERVAL)


def trusted_url(text: str) -> URL:
    """The URL, which is https, or http to this machine itself. Raises InvalidConfiguration for any other."""
    try:
        url = URL(text)
    except ValueError as error:
        raise _untrusted(text) from error
    if url.user is not None or url.password is not None:
        raise InvalidConfiguration("a JWKS URL with a password in it would end up in logs", rule="jwks_url_credentials")
    if not url.host or not (url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.host))):
        raise _untrusted(text)
    return url


def _untrusted(text: str) -> InvalidConfiguration:
    return InvalidConfiguration(
        f"keys that come from {text[:200]!a} could be replaced on their way",
        rule="jwks_url_insecure",
        hint="use https://, or http:// to localhost, or a file",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def read_file(path: Path) -> bytes:
    """The file's content, read off the event loop. Raises InvalidConfiguration."""
    try:
        return await asyncio.to_thread(_read_bounded, path)
    except OSError as error:
        raise InvalidConfiguration(f"cannot read {path}: {error.strerror}", rule="jwks_unreadable") from error


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_DOCUMENT_BYTES + 1)


async def fetch(url: URL, *, tls: ssl.SSLContext | None = None, within: timedelta = FETCH_TIMEOUT) -> bytes:
    """The body of an answer with status 200. Raises Unavailable. `tls` is for tests with an authority of their own."""
    limits = aiohttp.ClientTimeout(total=within.total_seconds())
    headers = {"Accept": "application/jwk-set+json, application/json"}
    try:
        async with (
            aiohttp.ClientSession(timeout=limits, headers=headers) as session,
            session.get(url, allow_redirects=False, ssl=tls or True) as response,
        ):
            if response.status != 200:
                raise Unavailable(f"{url} answered with status {response.status}", rule="jwks_unreachable")
            return await _bounded_body(response)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unavailable(f"{url}: {str(error) or type(error).__name__}", rule="jwks_unreachable") from error


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_chunked(16 * 1024):
        body += part
        if len(body) > MAX_DOCUMENT_BYTES:  # parsing refuses what is longer
            break
    return bytes(body)
