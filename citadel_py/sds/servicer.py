"""Envoy's secret discovery service on gRPC, also as a part of its aggregated discovery service.

It hands streams to conversation.py, nothing more. What a client may have is asked once per stream: on a
Unix socket everything, since its owner decides who connects; over TCP that is audience.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc

from citadel_py.core.errors import Unavailable
from citadel_py.sds.conversation import Context, Conversation, Offered, check_type
from citadel_py.sds.delta import DeltaRequest, DeltaStream
from citadel_py.sds.received import Received, ReceivedDelta, ReceivedRequest
from citadel_py.sds.stream import Push, Request, Stream, version_of

SERVICE: Final = "envoy.service.secret.v3.SecretDiscoveryService"
AGGREGATED_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"


class SecretService:
    """The handlers. One object serves all streams of one listener.

    `offer` says what a client is offered, and which ID it has proven. It raises CitadelError for nobody.
    """

    def __init__(self, offer: Callable[[Context], tuple[Offered, str]]) -> None:
        self._offer = offer

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

    async def fetch_secrets(self, received: Received[Request], context: Context) -> bytes:
        """The current state, once. Raises Unavailable while there is none of the wanted secrets."""
        check_type(received.type_url)
        hub = self._offer(context)[0].hub
        snapshot = hub.snapshot
        names = dict.fromkeys(received.request.names)
        resources = tuple(snapshot[name] for name in names if name in snapshot)
        if not resources:
            raise Unavailable("there are no such secrets yet", rule="secrets_withheld")
        return hub.response(Push("1", version_of(resources), resources))

    async def _of_the_world(self, context: Context, *, is_aggregated: bool) -> None:
        offered, peer = self._offer(context)
        await Conversation[Request](offered, context, Stream(), peer=peer, is_aggregated=is_aggregated).run()

    async def _incremental(self, context: Context, *, is_aggregated: bool) -> None:
        offered, peer = self._offer(context)
        await Conversation[DeltaRequest](offered, context, DeltaStream(), peer=peer, is_aggregated=is_aggregated).run()
