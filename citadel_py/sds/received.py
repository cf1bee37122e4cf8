"""What is kept of a request of xDS: its node, 60 KB from a real Envoy, shrinks to a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from citadel_py._proto.envoy.config.core.v3 import base_pb2
from citadel_py._proto.envoy.service.discovery.v3 import discovery_pb2
from citadel_py.sds.delta import DeltaRequest
from citadel_py.sds.stream import Request

RequestT = TypeVar("RequestT", Request, DeltaRequest)

_MAX_NODE = 200  # characters


@dataclass(frozen=True, slots=True)
class Received(Generic[RequestT]):
    """A request, what type of resources it is about, and what its sender calls itself."""

    request: RequestT
    type_url: str
    node: str


class ReceivedRequest(Received[Request]):
    """A DiscoveryRequest."""

    @classmethod
    def parse(cls, serialized: bytes) -> Self:
        """The message itself is dropped at once."""
        message = discovery_pb2.DiscoveryRequest.FromString(serialized)
        error = message.error_detail.message if message.HasField("error_detail") else None
        request = Request(tuple(message.resource_names), message.version_info, message.response_nonce, error)
        return cls(request, message.type_url, _label(message.node))


class ReceivedDelta(Received[DeltaRequest]):
    """A DeltaDiscoveryRequest."""

    @classmethod
    def parse(cls, serialized: bytes) -> Self:
        """The message itself is dropped at once."""
        message = discovery_pb2.DeltaDiscoveryRequest.FromString(serialized)
        request = DeltaRequest(
            tuple(message.resource_names_subscribe),
            tuple(message.resource_names_unsubscribe),
            dict(message.initial_resource_versions),
            message.response_nonce,
            message.error_detail.message if message.HasField("error_detail") else None,
        )
        return cls(request, message.type_url, _label(message.node))


def _label(node: base_pb2.Node) -> str:
    return ascii(node.id[:_MAX_NODE])[1:-1][:_MAX_NODE]
