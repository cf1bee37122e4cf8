"""One call to the CA: channels that are kept as long as they are right, and failures as our errors."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import grpc

from citadel_py._proto.istio.v1.auth import ca_pb2, ca_pb2_grpc
from citadel_py.core.errors import BadInput, CitadelError, PermissionDenied, Unauthenticated, Unavailable
from citadel_py.obs.redaction import redact_text
from citadel_py.obs.status import Refusal, read_refusal

MTLS_PORT_KEY: Final = "citadel-mtls-port"  # in the trailing metadata of every answer of the listener for tokens
RENEW_AT_KEY: Final = "citadel-renew-at"  # in the trailing metadata of every certificate
MAX_REPLY_BYTES: Final = 4 << 20  # the bundle is the operator's
_MAX_CHANNELS: Final = 16
_MAX_REMOTE_TEXT: Final = 300
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
# What BoringSSL and gRPC say in the status of a handshake that failed, and what it means to an operator.
_TLS_HINTS = {
    "CERTIFICATE_VERIFY_FAILED": "the CA's certificate does not verify: is ca_bundle the bundle of that CA?",
    "Hostname Verification Check failed": "the CA's certificate names other hosts: start it with --server-name",
}
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}")

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.enable_http_proxy", 0),  # a CA is inside; a proxy for the outside must not see tokens
    ("grpc.client_idle_timeout_ms", 60_000),  # renewals are hours apart: no connection waits for the next one
    # When to try again is decided elsewhere; a channel that is asked shall try, not report an old failure.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)

# Every other code may be cured by trying again: that is how agents of the compatible API read them, too.
_ERRORS: Final[dict[grpc.StatusCode, type[CitadelError]]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.INVALID_ARGUMENT: BadInput,
}


@dataclass(frozen=True, slots=True)
class Door:
    """A listener of the CA, the roots that verify it (PEM), and maybe the certificate that is shown there."""

    address: str
    roots: bytes
    chain: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The elements of the certificate, and when the CA would like it to be renewed; nothing of it is checked yet."""

    elements: tuple[str, ...]
    renew_at: datetime | None = None


class Channels:
    """Channels by door: used again while the door is the same, closed when they are the oldest of too many."""

    def __init__(self) -> None:
        self._channels: OrderedDict[Door, grpc.aio.Channel] = OrderedDict()

    async def to(self, door: Door) -> grpc.aio.Channel:
        """A channel, which connects when it is used."""
        channel = self._channels.pop(door, None) or _open(door)
        self._channels[door] = channel
        if len(self._channels) > _MAX_CHANNELS:
            _, oldest = self._channels.popitem(last=False)
            await oldest.close()
        return channel

    async def close(self) -> None:
        """Close them all."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()


async def create_certificate(
    channel: grpc.aio.Channel,
    request: ca_pb2.IstioCertificateRequest,
    *,
    token: str | None,
    deadline: timedelta,
    learn_port: Callable[[int], None],
) -> Answer:
    """The CA's answer. `learn_port` is told where it takes certificates, if the answer says so.

    Raises Unauthenticated, PermissionDenied, BadInput, or Unavailable for all that may pass.
    """
    headers = (("authorization", f"Bearer {token}"),) if token else ()
    stub = ca_pb2_grpc.IstioCertificateServiceStub(channel)
    call = stub.CreateCertificate(request, timeout=deadline.total_seconds(), metadata=grpc.aio.Metadata(*headers))
    try:
        response = await call
        trailing = await call.trailing_metadata()
        _learn(trailing, learn_port)
    except grpc.aio.AioRpcError as error:
        _learn(error.trailing_metadata(), learn_port)
        raise error_of(read_refusal(error)) from error
    return Answer(tuple(response.cert_chain), renewal_advice(trailing))


def error_of(refusal: Refusal) -> CitadelError:
    """A refusal as one of our errors; what the other side wrote is shortened and made harmless."""
    rule = refusal.reason.lower() if _REASON.fullmatch(refusal.reason) else ""
    facts = [f"{refusal.code.name}: {_harmless(refusal.message)}"]
    if refusal.request_id:
        facts.append(f"request id {_harmless(refusal.request_id)}")
    if refusal.retry_after is not None:
        facts.append(f"it asks to wait {refusal.retry_after.total_seconds():.1f} s")
    hints = tuple(_harmless(hint) for hint in refusal.hints)
    if not refusal.reason:  # nobody of ours answered: what gRPC tells of its TLS is all there is
        hints += tuple(hint for sign, hint in _TLS_HINTS.items() if sign in refusal.message)
    message, rule = "; ".join(facts), rule or "ca_call_failed"
    kind = _ERRORS.get(refusal.code)
    if kind is not None:
        return kind(message, rule=rule, hint=hints)
    return Unavailable(message, rule=rule, hint=hints, retry_after=refusal.retry_after)


def _open(door: Door) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(door.roots, door.key, door.chain)
    return grpc.aio.secure_channel(door.address, credentials, _OPTIONS)


def _learn(metadata: grpc.aio.Metadata | None, learn_port: Callable[[int], None]) -> None:
    told = metadata.get(MTLS_PORT_KEY) if metadata else None
    if isinstance(told, str) and _PORT.fullmatch(told) and int(told) <= 65535:
        learn_port(int(told))


def renewal_advice(metadata: grpc.aio.Metadata | None) -> datetime | None:
    """The moment in RFC 3339 form; None where there is none that can be read. It is advice, and not worth an error."""
    told = metadata.get(RENEW_AT_KEY) if metadata else None
    if not isinstance(told, str) or not _MOMENT.fullmatch(told):
        return None
    try:
        return datetime.fromisoformat(told)
    except ValueError:  # a day that no month has
        return None


def _harmless(text: str) -> str:
    return redact_text(text)[:_MAX_REMOTE_TEXT]
