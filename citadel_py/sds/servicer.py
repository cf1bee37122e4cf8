"""Envoy's secret discovery service on gRPC: it translates between messages and stream.py, nothing more.

Whoever can reach the socket may have what the hub holds: who that is, the socket's owner decides.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc

from citadel_py._proto.envoy.service.discovery.v3 import discovery_pb2
from citadel_py.core.errors import BadInput, CitadelError, Unavailable
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.rpc import add_fields
from citadel_py.sds.encoding import SECRET_TYPE_URL
from citadel_py.sds.hub import Hub
from citadel_py.sds.stream import Acknowledged, Push, Rejected, Request, Stream, version_of

SERVICE: Final = "envoy.service.secret.v3.SecretDiscoveryService"
_MAX_SHOWN_NAMES = 10
_MAX_SHOWN_NAME = 200  # characters
_MAX_TELLINGS = 20  # of what is withheld on one stream: a client must not be able to fill the log

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Received:
    """What is kept of a DiscoveryRequest. Its node, 60 KB from a real Envoy, shrinks to a label."""

    request: Request
    type_url: str
    node: str

    @classmethod
    def parse(cls, serialized: bytes) -> Received:
        """Read a serialized DiscoveryRequest; the message itself is dropped at once."""
        message = discovery_pb2.DiscoveryRequest.FromString(serialized)
        error = message.error_detail.message if message.HasField("error_detail") else None
        request = Request(tuple(message.resource_names), message.version_info, message.response_nonce, error)
        return cls(request, message.type_url, ascii(message.node.id[:100])[1:-1])


class SecretService:
    """The handlers. One object serves all streams of one hub."""

    def __init__(self, hub: Hub, metrics: AgentMetrics) -> None:
        self._hub = hub
        self._metrics = metrics

    def handlers(self) -> grpc.GenericRpcHandler:
        """What to add to a server. Responses are encoded by the hub, so serializers have nothing to do."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "StreamSecrets": grpc.stream_stream_rpc_method_handler(self.stream_secrets, Received.parse),
                "FetchSecrets": grpc.unary_unary_rpc_method_handler(self.fetch_secrets, Received.parse),
                "DeltaSecrets": grpc.stream_stream_rpc_method_handler(self.delta_secrets),
            },
        )

    async def stream_secrets(self, _requests: object, context: Context) -> None:
        """State of the world. Ends when the client does, or when the hub closes."""
        with self._hub.listen() as wake, self._metrics.sds_streams.track_inprogress():
            await _Conversation(self._hub, self._metrics, context, wake).run()

    async def fetch_secrets(self, received: Received, _context: Context) -> bytes:
        """The current state, once. Raises Unavailable while there is none of the wanted secrets."""
        _check_type(received.type_url)
        snapshot = self._hub.snapshot
        names = dict.fromkeys(received.request.names)
        resources = tuple(snapshot[name] for name in names if name in snapshot)
        if not resources:
            raise Unavailable("there are no such secrets yet", rule="secrets_withheld")
        return self._hub.response(Push("1", version_of(resources), resources))

    async def delta_secrets(self, _requests: object, context: Context) -> None:
        """The incremental protocol is not spoken yet."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "incremental SDS is not spoken here: set api_type to GRPC, not DELTA_GRPC"
        )


class _Conversation:
    """One stream: a task reads requests into the state, this one sends what the state says."""

    def __init__(self, hub: Hub, metrics: AgentMetrics, context: Context, wake: asyncio.Event) -> None:
        self._hub = hub
        self._metrics = metrics
        self._context = context
        self._wake = wake
        self._stream = Stream()
        self._node = ""
        self._withheld: tuple[str, ...] = ()
        self._tellings = 0
        self._is_open = False
        self._is_over = False
        self._refused: CitadelError | None = None

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read())
                await self._send()
                reading.cancel()
        finally:
            _log.debug(events.SDS_STREAM_CLOSED, node=self._node)
        if self._refused:
            raise self._refused

    async def _read(self) -> None:
        try:
            while (received := await self._context.read()) is not grpc.aio.EOF:
                self._take(received)
                self._wake.set()
        except CitadelError as error:  # told to the client by whoever runs this stream, not to a group of tasks
            self._refused = error
        finally:
            self._is_over = True
            self._wake.set()

    async def _send(self) -> None:
        while not (self._is_over or self._hub.is_closed):
            if push := self._stream.next_push(self._hub.snapshot):
                await self._context.write(self._hub.response(push))
                self._metrics.sds_pushes.inc()
                _log.debug(events.SDS_PUSHED, node=self._node, version=push.version, names=_names_of(push))
            else:
                await self._wake.wait()
                self._wake.clear()

    def _take(self, received: Received) -> None:
        _check_type(received.type_url)
        if not self._is_open:
            self._is_open, self._node = True, received.node
            _log.info(events.SDS_STREAM_OPENED, node=self._node, names=_shown(received.request.names))
        snapshot = self._hub.snapshot
        match self._stream.receive(received.request, snapshot):
            case Acknowledged() as answer:
                self._metrics.sds_acks.inc()
                _log.info(events.SDS_ACKED, node=self._node, version=answer.version, names=answer.names)
            case Rejected() as answer:
                self._metrics.sds_nacks.inc()
                _log.error(
                    events.SDS_NACKED, node=self._node, version=answer.version, names=answer.names, error=answer.reason
                )
        add_fields(node=self._node, names=_shown(self._stream.names))
        self._tell_withheld(self._stream.withheld(snapshot))

    def _tell_withheld(self, names: tuple[str, ...]) -> None:
        if names and names != self._withheld and self._tellings < _MAX_TELLINGS:
            self._tellings += 1
            known = _shown(tuple(self._hub.snapshot))
            _log.warning(events.SDS_WITHHELD, node=self._node, names=_shown(names), known=known)
        self._withheld = names


def _check_type(type_url: str) -> None:
    if type_url not in ("", SECRET_TYPE_URL):
        raise BadInput(f"only secrets are served here, not {type_url[:100]!a}", rule="resource_type_unknown")


def _names_of(push: Push) -> tuple[str, ...]:
    return _shown(tuple(resource.name for resource in push.resources))


def _shown(names: tuple[str, ...]) -> tuple[str, ...]:
    """Bounded, for a log line."""
    shown = tuple(name[:_MAX_SHOWN_NAME] for name in names[:_MAX_SHOWN_NAMES])
    more = len(names) - len(shown)
    return (*shown, f"and {more} more") if more else shown
