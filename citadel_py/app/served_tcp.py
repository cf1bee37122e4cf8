"""One socket's secrets over TCP as well, for proxies that are not on this machine.

The agent shows the socket's first identity there. It is told of secrets as the socket is, and knows nothing
of where they come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta

import grpc

from citadel_py.app.runtime import utcnow
from citadel_py.config import Address
from citadel_py.core.ports import HeldSVID
from citadel_py.core.secrets import Secret
from citadel_py.core.spiffe import SpiffeID
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.audience import Audience
from citadel_py.sds.evidence import Evidence
from citadel_py.sds.tcp import TcpSecretServer
from citadel_py.sds.tls import ServingSVID


class ServedTCP:
    """Make it, `publish` to it, have `run` supervised, and `stop` it once."""

    def __init__(
        self,
        listen: Address,
        keys_to: Collection[SpiffeID],
        metrics: AgentMetrics,
        *,
        evidence: Evidence,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self._audience = Audience(keys_to)
        self._serving = ServingSVID(utcnow)
        self._server = TcpSecretServer(
            str(listen), self._audience, self._serving, metrics, interceptors=interceptors, evidence=evidence
        )

    @property
    def is_listening(self) -> bool:
        """False until there is a certificate to show."""
        return self._server.is_listening

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        return self._server.address

    def publish(self, secrets: Iterable[Secret], withheld: Mapping[str, str], shown: HeldSVID | None) -> None:
        """What the socket serves now; `shown` is its first identity, with the bundle that verifies peers."""
        self._audience.replace(secrets)
        self._audience.explain(withheld)
        if shown:
            self._serving.replace(shown)

    async def run(self) -> None:
        """Listen as soon as there is a certificate, until cancelled. Raises Unavailable where it cannot."""
        await self._server.start()
        await asyncio.Event().wait()

    async def stop(self, grace: timedelta) -> None:
        """End all streams, then the server."""
        await self._server.stop(grace)
