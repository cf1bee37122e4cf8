"""The admin listener: `/livez`, `/readyz` and `/metrics` over plain HTTP, for probes and scrapers.

It has no authentication and therefore nothing secret and nothing that changes anything. Bind it to
loopback or to an address that only probes and scrapers reach.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from aiohttp import web

from citadel_py.core.errors import Unavailable
from citadel_py.obs.metrics import CONTENT_TYPE, Metrics
from citadel_py.obs.redaction import redact_text

Checks: TypeAlias = Callable[[], Mapping[str, str | None]]
Exposition: TypeAlias = Callable[[], Awaitable[bytes]]
Document: TypeAlias = Callable[[], object | Awaitable[object]]  # what JSON can say, and nothing secret

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class AdminServer:
    """Serves health and metrics at one address. `start` it and `stop` it once.

    `checks` is asked at every probe: each name with None where all is well, else with what is wrong
    in words. `degraded` is the same for what does not take readiness away. The process is live as
    long as it answers, whatever the checks say: a restart helps against none of them. `exposition`
    gives the page of metrics where those of this process are not all. `documents` are further pages of
    JSON, by path.
    """

    def __init__(
        self,
        host: str | None,
        port: int,
        *,
        checks: Checks,
        metrics: Metrics,
        degraded: Checks = dict,
        exposition: Exposition | None = None,
        documents: Mapping[str, Document] | None = None,
    ) -> None:
        self.port = port
        self._host = host
        self._checks = checks
        self._degraded = degraded
        self._metrics = metrics
        self._exposition = exposition
        self._documents = documents or {}
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            shutdown_timeout=1.0,
            keepalive_timeout=30.0,
            max_line_size=2048,
            max_headers=64,
        )

    async def start(self) -> None:
        """Listen; with port 0 `port` becomes the one that was free. Raises Unavailable."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise Unavailable(
                f"cannot listen on {self._host or '*'}:{self.port} for health and metrics: {error.strerror}",
                rule="listen_failed",
                hint="is another process listening there?",
            ) from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the listener; scrapes under way get a second to end."""
        await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=1024)
        application.on_response_prepare.append(_set_headers)
        application.add_routes(
            [web.get("/livez", _livez), web.get("/readyz", self._readyz), web.get("/metrics", self._metrics_page)]
        )
        application.add_routes([web.get(path, _page(document)) for path, document in self._documents.items()])
        return application

    async def _readyz(self, request: web.Request) -> web.Response:
        checks = {name: _shown(problem) for name, problem in self._checks().items()}
        degraded = {name: _shown(problem) for name, problem in self._degraded().items()}
        is_ready = not any(checks.values())
        status = 200 if is_ready else 503
        if "application/json" in request.headers.get("Accept", ""):
            document = {"version": 1, "ready": is_ready, "checks": checks, "degraded": degraded}
            return web.json_response(document, status=status)
        summary = "ok" if is_ready else "not ready"
        told = [*map(_line, checks.items()), *(_line(each, "degraded") for each in degraded.items())]
        lines = [*told, summary] if "verbose" in request.query else [summary]
        return web.Response(text="\n".join(lines) + "\n", status=status)

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        body = await self._exposition() if self._exposition else self._metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def _page(document: Document) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        content = document()
        return web.json_response(await content if inspect.isawaitable(content) else content)

    return answer


async def _livez(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _set_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    response.headers.pop("Server", None)


def _shown(problem: str | None) -> str | None:
    return None if problem is None else redact_text(problem)


def _line(check: tuple[str, str | None], otherwise: str = "not ok") -> str:
    name, problem = check
    return f"[ok] {name}" if problem is None else f"[{otherwise}] {name}: {problem}"
