"""The gRPC server of one Unix socket, with SDS and the Workload API: bounds, and a stop that ends streams first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import grpc

from citadel_py.core.errors import InvalidConfiguration
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.hub import Hub
from citadel_py.sds.servicer import SecretService
from citadel_py.sds.socket import MAX_MODE, OwnedSocket, UnixAddress
from citadel_py.sds.workload import Workload
from citadel_py.sds.workload_api import WorkloadService

MAX_STREAMS: Final = 4096  # of all proxies on this socket
MAX_MESSAGE_BYTES: Final = 1 << 20  # a real Envoy's first request has 61 KB

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1024),  # of one connection; an Envoy opens one per secret
    # A storm of proxies that reconnect is let in, where gRPC's default drops streams at random.
    ("grpc.server.max_pending_requests", 8192),
    ("grpc.server.max_pending_requests_hard_limit", 16384),
    # Envoys ping to notice a frozen server; gRPC's default takes more than a few for an attack.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)


class SecretServer:
    """Serves one hub, and one workload if given, on one socket. Make it, `start` it, `stop` it once."""

    def __init__(
        self,
        address: UnixAddress,
        hub: Hub,
        metrics: AgentMetrics,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        mode: int = MAX_MODE,
        max_streams: int = MAX_STREAMS,
        workload: Workload | None = None,
    ) -> None:
        self._address = address
        self._hub = hub
        self._metrics = metrics
        self._interceptors = interceptors
        self._mode = mode
        self._max_streams = max_streams
        self._workload = workload
        self._socket: OwnedSocket | None = None
        self._server: grpc.aio.Server | None = None

    @property
    def is_listening(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        """Listen. Raises InvalidConfiguration, or Unavailable (`socket_in_use`) where another server lives there."""
        owned = OwnedSocket.claim(self._address.path)
        try:
            self._server = await self._listen(owned)
        except BaseException:
            owned.release()
            raise
        self._socket = owned

    async def stop(self, grace: timedelta = timedelta(seconds=2)) -> None:
        """End all streams, then the server; the socket and its lock are gone afterwards."""
        server, self._server = self._server, None
        owned, self._socket = self._socket, None
        if server is None or owned is None:
            return
        self._hub.close()
        if self._workload:
            self._workload.close()
        try:
            await server.stop(grace.total_seconds())
        finally:
            owned.release()

    async def _listen(self, owned: OwnedSocket) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=self._interceptors, options=_OPTIONS, maximum_concurrent_rpcs=self._max_streams
        )
        server.add_generic_rpc_handlers(SecretService(self._hub, self._metrics).handlers())
        if self._workload:
            server.add_generic_rpc_handlers((WorkloadService(self._workload, self._metrics).handlers(),))
        with owned.private():
            self._bind(server)
        await server.start()
        owned.open_to(self._mode)
        return server

    def _bind(self, server: grpc.aio.Server) -> None:
        try:
            server.add_insecure_port(self._address.target)
        except RuntimeError as error:
            raise InvalidConfiguration(f"cannot listen on {self._address}: {error}", rule="socket_unusable") from error
