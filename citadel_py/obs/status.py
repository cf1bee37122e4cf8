"""Errors as gRPC carries them: our classes to status codes with details, and the way back for clients.

The one table of the gRPC edge is here. What a caller may not learn (why nobody knows it, what broke
inside) is left out here and told in the log under the same request id.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships .pyi files without py.typed

from citadel_py.core.errors import (
    BadInput,
    CitadelError,
    InvalidConfiguration,
    LimitReached,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

DOMAIN = "citadel-py"
DETAILS_KEY = "grpc-status-details-bin"  # fixed by gRPC for a serialized google.rpc.Status
REQUEST_ID_KEY = "citadel-request-id"
MAX_TEXT = 1000  # messages travel in headers, which peers bound

# The most special class first. A broken configuration is bad input to an operator, not to a caller.
_CODES: tuple[tuple[type[CitadelError], grpc.StatusCode], ...] = (
    (InvalidConfiguration, grpc.StatusCode.INTERNAL),
    (BadInput, grpc.StatusCode.INVALID_ARGUMENT),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (LimitReached, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
)
# Codes whose callers get one fixed text.
_OPAQUE = {
    grpc.StatusCode.INTERNAL: "internal error",
    grpc.StatusCode.UNAUTHENTICATED: "the caller could not be authenticated",
    grpc.StatusCode.UNAVAILABLE: "not available now, try again later",
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
# Codes whose callers do not learn the rule either.
_REASONLESS = {grpc.StatusCode.INTERNAL: "INTERNAL", grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a caller gets to know: a code, a text, a stable reason, and what it can do about it."""

    code: grpc.StatusCode
    message: str
    reason: str
    request_id: str = ""
    hints: tuple[str, ...] = ()
    retry_after: timedelta | None = None

    def details(self) -> bytes:
        """A serialized google.rpc.Status, as trailing metadata carry it."""
        serialized: bytes = self.status().SerializeToString()
        return serialized

    def status(self) -> status_pb2.Status:
        """With ErrorInfo, RequestInfo and maybe RetryInfo."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)
        if self.hints:
            info.metadata["hint"] = "\n".join(self.hints)[:MAX_TEXT]
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.add().Pack(info)
        status.details.add().Pack(error_details_pb2.RequestInfo(request_id=self.request_id))
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromTimedelta(self.retry_after)
            status.details.add().Pack(retry)
        return status


def refusal_of(error: Exception, *, request_id: str, retry_after: timedelta) -> Refusal:
    """The table. `retry_after` is used where trying again can help; anything that is not ours is INTERNAL."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if not isinstance(error, CitadelError) or code in _REASONLESS:
        return Refusal(code, _OPAQUE[code], _REASONLESS[code], request_id)
    if code in _OPAQUE:
        return Refusal(code, _OPAQUE[code], error.reason, request_id, retry_after=retry_after)
    later = retry_after if isinstance(error, Unavailable) else None
    return Refusal(code, error.message[:MAX_TEXT], error.reason, request_id, error.hints, later)


def status_of(error: CitadelError, *, request_id: str, usual: timedelta, uniform: float) -> status_pb2.Status:
    """One of our errors as an answer within a stream has it: what a call that ends in it would say."""
    delay = retry_delay(error, usual=usual, uniform=uniform)
    return refusal_of(error, request_id=request_id, retry_after=delay).status()


def retry_delay(error: Exception, *, usual: timedelta, uniform: float) -> timedelta:
    """When a caller shall come back: not before the error says, else about `usual`, and not all at once."""
    if isinstance(error, Unavailable) and error.retry_after is not None:
        return error.retry_after * (1 + uniform / 2)
    return usual * (0.5 + uniform)


def read_refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """What a failed call says. Without (readable) details the reason and request id are empty."""
    trailing = dict(_pairs(error.trailing_metadata()))
    bare = Refusal(error.code(), error.details() or "", "", _text(trailing.get(REQUEST_ID_KEY, "")))
    details = trailing.get(DETAILS_KEY)
    if not isinstance(details, bytes):
        return bare
    try:
        return _with_details(bare, status_pb2.Status.FromString(details))
    except (DecodeError, ValueError, OverflowError):  # of the message, of a detail, of a delay beyond all measure
        return bare


def refusal_in(status: status_pb2.Status) -> Refusal:
    """What a status within a stream says. A code that gRPC does not have is UNKNOWN."""
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    bare = Refusal(code, status.message, "")
    try:
        return _with_details(bare, status)
    except (DecodeError, ValueError, OverflowError):
        return bare


def _with_details(bare: Refusal, status: status_pb2.Status) -> Refusal:
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo(), error_details_pb2.RetryInfo()
    found = [part for detail in status.details for part in (info, request, retry) if detail.Unpack(part)]
    hint = info.metadata.get("hint", "")
    return Refusal(
        bare.code,
        bare.message,
        info.reason if info.domain == DOMAIN else "",
        request.request_id or bare.request_id,
        tuple(hint.splitlines()),
        retry.retry_delay.ToTimedelta() if retry in found else None,
    )


def _pairs(metadata: Iterable[tuple[str, str | bytes]] | None) -> Iterable[tuple[str, str | bytes]]:
    return metadata or ()


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("ascii", "replace")
