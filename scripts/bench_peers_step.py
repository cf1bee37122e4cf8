"""The load client for step-ca: its HTTPS API in place of gRPC. It is run by bench_peers_run.py."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from citadel_py.app.bench_calls import CALL_TIMEOUT_S, CallFailed, Connection, Credential, Load
from citadel_py.app.bench_load import main


class _Step:
    """A session with one connection per call in flight, which stay."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(self, csr: str, credential: Credential) -> Sequence[str]:
        """As step's own client asks; there is no bundle at the end."""
        try:
            async with self._session.post(self._url, json={"csr": csr, "ott": credential.token}) as response:
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CallFailed(f"{type(error).__name__}: {error}") from error
        if "certChain" not in answer:
            raise CallFailed(f"{response.status}: {answer}")
        return [*answer["certChain"], ""]


@asynccontextmanager
async def step(load: Load, _credential: Credential) -> AsyncIterator[Connection]:
    """A session of its own, which shares no connection."""
    trust = ssl.create_default_context(cadata=load.roots)
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, limit=0), timeout=timeout) as session:
        yield _Step(session, f"https://{load.address}/1.0/sign")


if __name__ == "__main__":
    main(step)
