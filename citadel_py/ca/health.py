"""The standard gRPC health service, with an end: watchers would hold a stopping server for its whole grace."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health, health_pb2

SERVICE_NAME: str = health.SERVICE_NAME
_LAST_WORD_S = 0.1

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Answers for the server as a whole (the empty name) and for the services that are named here."""

    def __init__(self, *services: str) -> None:
        super().__init__()
        self._services = ("", *services)
        self._ending = asyncio.Event()

    async def set_serving(self, *, serving: bool) -> None:
        """What is answered from now on; watchers are told. Without effect once `end` was called."""
        for name in self._services:
            await self.set(name, _SERVING if serving else _NOT_SERVING)

    async def tell_checks(self, checks: Mapping[str, str | None]) -> None:
        """What is answered for `check/NAME` from now on: whether it has a problem, never which one."""
        for name, problem in checks.items():
            await self.set(f"check/{name}", _NOT_SERVING if problem else _SERVING)

    async def end(self) -> None:
        """Say NOT_SERVING for ever, and let all watchers go."""
        await self.enter_graceful_shutdown()
        self._ending.set()

    async def Watch(  # noqa: N802 - the name is the protocol's
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> None:
        """See grpc.health.v1: answers at every change, until `end`."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait((watching, ending), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((watching,), timeout=_LAST_WORD_S)
        finally:
            for task in (watching, ending):
                task.cancel()
            await asyncio.gather(watching, ending, return_exceptions=True)
