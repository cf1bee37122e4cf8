"""The gRPC server of one Unix socket: SDS, the Workload API, reflection; bounds, and a stop that ends streams first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import grpc
from grpc_reflection.v1alpha import reflection

from citadel_py.core.errors import InvalidConfiguration
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.conversation import Offered
from citadel_py.sds.evidence import Evidence
from citadel_py.sds.hub import Hub
from citadel_py.sds.servicer import AGGREGATED_SERVICE, SERVICE, SecretService
from citadel_py.sds.socket import Access, OwnedSocket, UnixAddress
from citadel_py.sds.workload import Workload
from citadel_py.sds.workload_api import SERVICE as WORKLOAD_SERVICE
from citadel_py.sds.workload_api import WorkloadService

MAX_STREAMS: Final = 4096  # of all proxies on this socket
MAX_MESSAGE_BYTES: Final = 1 << 20  # a real Envoy's first request has 61 KB

OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1024),  # of one connection; an Envoy opens one per secret
    # A storm of proxies that reconnect is let in, where gRPC's default drops streams at random.
    ("grpc.server.max_pending_requests", 8192),
    ("grpc.server.max_pending_requests_hard_limit", 16384),
    ("grpc.so_reuseport", 0),
    # Headers that gRPC remembers for their next use keep the whole of what was read with them, and an Envoy's
    # first message is large: half of a connection's memory.
    ("grpc.http2.hpack_table_size.decoder", 0),
)
# Envoys ping to notice a frozen server; gRPC's default takes more than a few for an attack.
_PINGS: Final = (("grpc.http2.max_ping_strikes", 0),)
SDS_SERVICES: Final = (SERVICE, AGGREGATED_SERVICE)


class SecretServer:
    """Serves one hub, and one workload if given, on one socket. Make it, `start` it, `stop` it once."""

    def __init__(
        self,
        address: UnixAddress,
        hub: Hub,
        metrics: AgentMetrics,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        access: Access = Access(),  # noqa: B008 - a frozen value
        max_streams: int = MAX_STREAMS,
        workload: Workload | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        self._address = address
        self._hub = hub
        self._metrics = metrics
        self._offered = Offered(hub, metrics, evidence or Evidence(time.monotonic), str(address))
        self._interceptors = interceptors
        self._access = access
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
            interceptors=self._interceptors, options=(*OPTIONS, *_PINGS), maximum_concurrent_rpcs=self._max_streams
        )
        server.add_generic_rpc_handlers(SecretService(lambda _: (self._offered, "")).handlers())
        names = [*SDS_SERVICES, reflection.SERVICE_NAME]
        if self._workload:
            server.add_generic_rpc_handlers((WorkloadService(self._workload, self._metrics).handlers(),))
            names.append(WORKLOAD_SERVICE)
        reflection.enable_server_reflection(names, server)
        with owned.private():
            self._bind(server)
        await server.start()
        try:
            owned.open_to(self._access)
        except BaseException:
            await server.stop(None)
            raise
        return server

    def _bind(self, server: grpc.aio.Server) -> None:
        try:
            server.add_insecure_port(self._address.target)
        except RuntimeError as error:
            raise InvalidConfiguration(f"cannot listen on {self._address}: {error}", rule="socket_unusable") from error
