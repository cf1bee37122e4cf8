"""A steady stream of requests through the client Envoy, counted one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias

import aiohttp

_TIMEOUT = aiohttp.ClientTimeout(total=10)
_KEPT_REASONS = 10

OnResponse: TypeAlias = Callable[[Mapping[str, str]], None]


def _ignore(_headers: Mapping[str, str]) -> None:
    """For those who only count."""


@dataclass
class Load:
    """Requests to `url` while the block lasts: `rate` a second from `lanes` clients, who each wait for their answer.

    Every answer but 200, and none within ten seconds, is a failure; `reasons` holds the first few. The
    headers of each good answer go to `on_response`, and `slowest_s` is how long the slowest of them took.
    Leaving the block waits for the requests under way.
    """

    url: str
    rate: float = 25.0
    lanes: int = 4
    on_response: OnResponse = _ignore
    requests: int = 0
    failures: int = 0
    reasons: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)
    _running: asyncio.Future[list[None]] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.gather(*(self._lane(number / self.rate) for number in range(self.lanes)))
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._running:
            await self._running

    async def _lane(self, delay_s: float) -> None:
        """One client: a request each `lanes / rate` seconds, the first after `delay_s`."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
            while not await self._ends_before(due):
                await self._send(http)
                due = max(due + self.lanes / self.rate, loop.time())  # lost time is not made up for by a burst

    async def _send(self, http: aiohttp.ClientSession) -> None:
        self.requests += 1
        start = asyncio.get_running_loop().time()
        try:
            async with http.get(self.url) as response:
                text = await response.text()
                if response.status == 200:
                    self.slowest_s = max(self.slowest_s, asyncio.get_running_loop().time() - start)
                    self.on_response(response.headers)
                else:
                    self._note_failure(f"{response.status} {text[:200]}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self._note_failure(f"{type(error).__name__} {error}".strip())

    def _note_failure(self, reason: str) -> None:
        self.failures += 1
        if len(self.reasons) < _KEPT_REASONS:
            self.reasons.append(reason)

    async def _ends_before(self, due: float) -> bool:
        """Wait for the moment of the next request; True if the end came first."""
        try:
            async with asyncio.timeout_at(due):
                return await self._is_over.wait()
        except TimeoutError:
            return self._is_over.is_set()
