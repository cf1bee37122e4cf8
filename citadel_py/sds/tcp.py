"""The gRPC server of SDS on TCP, for proxies that are not on this machine: mTLS always, and SDS alone.

Over a network a peer is what its certificate says, and anybody may knock: everything has a bound.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import grpc

from citadel_py.core.errors import Unavailable
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.audience import Audience
from citadel_py.sds.conversation import Context, Offered
from citadel_py.sds.evidence import Evidence
from citadel_py.sds.server import MAX_STREAMS, OPTIONS
from citadel_py.sds.servicer import SecretService
from citadel_py.sds.tls import ServingSVID


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a listener.

    Streams of SDS never end by themselves, and a peer's certificate is not looked at while one is open:
    the age of connections is how long a peer may outlive its certificate here.
    """

    handshake: timedelta = timedelta(seconds=10)
    age: timedelta = timedelta(minutes=10)
    age_grace: timedelta = timedelta(seconds=5)
    keepalive: timedelta = timedelta(minutes=1)  # finds peers that vanished without a word
    keepalive_timeout: timedelta = timedelta(seconds=20)
    ping_interval: timedelta = timedelta(seconds=5)  # of peers; printed bootstraps say 10
    connections: int = 4096

    def options(self) -> list[tuple[str, int]]:
        """As grpc calls them, beyond those of every SDS server."""
        return [
            ("grpc.absolute_max_metadata_size", 32 << 10),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake)),
            ("grpc.max_connection_age_ms", _ms(self.age)),
            ("grpc.max_connection_age_grace_ms", _ms(self.age_grace)),
            ("grpc.keepalive_time_ms", _ms(self.keepalive)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout)),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.ping_interval)),
            ("grpc.http2.max_ping_strikes", 2),
        ]


class TcpSecretServer:
    """Serves an audience at `HOST:PORT`. Make it, `start` it, `stop` it once."""

    def __init__(
        self,
        address: str,
        audience: Audience,
        serving: ServingSVID,
        metrics: AgentMetrics,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        evidence: Evidence | None = None,
        max_streams: int = MAX_STREAMS,
        limits: Limits | None = None,
    ) -> None:
        self._address = address
        self._audience = audience
        self._serving = serving
        self._metrics = metrics
        self._evidence = evidence or Evidence(time.monotonic)
        self._interceptors = interceptors
        self._max_streams = max_streams
        self._limits = limits or Limits()
        self._server: grpc.aio.Server | None = None
        self.address = ""

    @property
    def is_listening(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        """Listen, as soon as there is a certificate; with port 0 `address` tells which was free. Raises Unavailable."""
        await self._serving.has_come()
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=(*OPTIONS, *self._limits.options()),
            maximum_concurrent_rpcs=self._max_streams,
        )
        server.add_generic_rpc_handlers(SecretService(self._offer).handlers())
        self.address = self._bind(server)
        await server.start()
        self._server = server

    async def stop(self, grace: timedelta = timedelta(seconds=2)) -> None:
        """End all streams, then the server."""
        server, self._server = self._server, None
        if server:
            self._audience.close()
            await server.stop(grace.total_seconds())

    def _offer(self, context: Context) -> tuple[Offered, str]:
        """Raises Unauthenticated."""
        peer = self._serving.peer(context)
        return Offered(self._audience.hub_for(peer), self._metrics, self._evidence, self.address), str(peer)

    def _bind(self, server: grpc.aio.Server) -> str:
        try:
            port = server.add_secure_port(self._address, self._serving.credentials())
        except RuntimeError as error:
            raise Unavailable(
                f"cannot listen on {self._address} for SDS",
                rule="listen_failed",
                hint="is another process listening there?",
            ) from error
        return f"{self._address.rpartition(':')[0]}:{port}"


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)
