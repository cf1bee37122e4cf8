"""Envoy's secret discovery service on gRPC, also as a part of its aggregated discovery service.

It hands streams to conversation.py, nothing more. Whoever can reach the socket may have what the hub
holds: who that is, the socket's owner decides.
"""

from __future__ import annotations

from typing import Any, Final

import grpc

from citadel_py.core.errors import Unavailable
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.conversation import Context, Conversation, check_type
from citadel_py.sds.delta import DeltaRequest, DeltaStream
from citadel_py.sds.hub import Hub
from citadel_py.sds.received import Received, ReceivedDelta, ReceivedRequest
from citadel_py.sds.stream import Push, Request, Stream, version_of

SERVICE: Final = "envoy.service.secret.v3.SecretDiscoveryService"
AGGREGATED_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"


class SecretService:
    """The handlers. One object serves all streams of one hub."""

    def __init__(self, hub: Hub, metrics: AgentMetrics) -> None:
        self._hub = hub
        self._metrics = metrics

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What to add to a server. Responses are encoded by the hub, so serializers have nothing to do."""
        stream = grpc.stream_stream_rpc_method_handler
        secrets: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "StreamSecrets": stream(self.stream_secrets, ReceivedRequest.parse),
            "DeltaSecrets": stream(self.delta_secrets, ReceivedDelta.parse),
            "FetchSecrets": grpc.unary_unary_rpc_method_handler(self.fetch_secrets, ReceivedRequest.parse),
        }
        aggregated: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "StreamAggregatedResources": stream(self.stream_aggregated, ReceivedRequest.parse),
            "DeltaAggregatedResources": stream(self.delta_aggregated, ReceivedDelta.parse),
        }
        return (
            grpc.method_handlers_generic_handler(SERVICE, secrets),
            grpc.method_handlers_generic_handler(AGGREGATED_SERVICE, aggregated),
        )

    async def stream_secrets(self, _requests: object, context: Context) -> None:
        """State of the world."""
        await self._of_the_world(context, is_aggregated=False)

    async def delta_secrets(self, _requests: object, context: Context) -> None:
        """Incremental."""
        await self._incremental(context, is_aggregated=False)

    async def stream_aggregated(self, _requests: object, context: Context) -> None:
        """State of the world, on a stream of all types."""
        await self._of_the_world(context, is_aggregated=True)

    async def delta_aggregated(self, _requests: object, context: Context) -> None:
        """Incremental, on a stream of all types."""
        await self._incremental(context, is_aggregated=True)

    async def fetch_secrets(self, received: Received[Request], _context: Context) -> bytes:
        """The current state, once. Raises Unavailable while there is none of the wanted secrets."""
        check_type(received.type_url)
        snapshot = self._hub.snapshot
        names = dict.fromkeys(received.request.names)
        resources = tuple(snapshot[name] for name in names if name in snapshot)
        if not resources:
            raise Unavailable("there are no such secrets yet", rule="secrets_withheld")
        return self._hub.response(Push("1", version_of(resources), resources))

    async def _of_the_world(self, context: Context, *, is_aggregated: bool) -> None:
        conversation = Conversation[Request](self._hub, self._metrics, context, Stream(), is_aggregated=is_aggregated)
        await conversation.run()

    async def _incremental(self, context: Context, *, is_aggregated: bool) -> None:
        conversation = Conversation[DeltaRequest](
            self._hub, self._metrics, context, DeltaStream(), is_aggregated=is_aggregated
        )
        await conversation.run()
