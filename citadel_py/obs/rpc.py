"""The gRPC interceptor: a request id, one log line and one measurement per RPC, and errors as statuses.

Handlers raise our errors and never abort by themselves; what they raise is translated here, once.
It authenticates nobody and looks into no message.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, Never, TypeAlias

import grpc
import structlog
from prometheus_client import Histogram

from citadel_py.core.errors import CitadelError
from citadel_py.core.ports import Uniform
from citadel_py.obs import events
from citadel_py.obs.floods import Floods
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import Metrics
from citadel_py.obs.peers import peer_of
from citadel_py.obs.status import DETAILS_KEY, REQUEST_ID_KEY, Refusal, refusal_of, retry_delay

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only
Answer: TypeAlias = Callable[[], Awaitable[Any]]

PUSHBACK_KEY = "grpc-retry-pushback-ms"  # honoured by clients with a retry policy (gRFC A6)
UNKNOWN_METHOD = "unknown"  # in metrics, so that clients cannot make up label values
_QUIET = "/grpc.health.v1.Health/"  # asked every few seconds; its successes are logged at debug level
_ALWAYS_TOLD = (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL)  # the others can be had by asking for nonsense

_log = get_logger()


@dataclass(slots=True)
class _Rpc:
    """The RPC that the current task serves."""

    id: str = field(default_factory=lambda: os.urandom(16).hex())
    facts: dict[str, object] = field(default_factory=dict)


_current: ContextVar[_Rpc | None] = ContextVar("citadel_rpc", default=None)


def request_id() -> str:
    """The id of the RPC that is being served; empty outside of one."""
    rpc = _current.get()
    return rpc.id if rpc else ""


def add_fields(**facts: object) -> None:
    """Put facts on the log line of the RPC that is being served; outside of one it does nothing."""
    rpc = _current.get()
    if rpc:
        rpc.facts.update(facts)


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server. Handlers are coroutines or async generators.

    `trailing` is asked once per RPC; its metadata goes on every reply, refusals too. A refusal that
    a caller may repeat tells it to wait as the error says, else between half of `retry_after` and one
    and a half of it.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        uniform: Uniform,
        trailing: Callable[[], Metadata] = tuple,
        retry_after: timedelta = timedelta(seconds=5),
    ) -> None:
        self._metrics = metrics
        self._uniform = uniform
        self._trailing = trailing
        self._retry_after = retry_after
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}  # by method: as a server has it, and as we run it
        self._floods = Floods()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor. Unknown methods are answered here, so that they are logged too."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(
                self._behaviour(_unimplemented, _stream, method, UNKNOWN_METHOD)
            )
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(handler, method))
        return known[1]

    def _wrap(self, handler: Handler, method: str) -> Handler:
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        if not (inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)):
            raise TypeError(f"the handler of {method} is neither a coroutine nor an async generator")
        answer = _stream if handler.response_streaming else _unary
        return _MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)](
            self._behaviour(behaviour, answer, method, method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _behaviour(
        self, behaviour: Callable[..., Any], run: Callable[..., Awaitable[Any]], method: str, label: str
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        in_flight = self._metrics.rpc_in_flight.labels(label)

        @cache
        def duration(code: grpc.StatusCode) -> Histogram:
            return self._metrics.rpc_duration.labels(label, code.name)

        async def observed(request: Any, context: Context) -> Any:  # noqa: ANN401 - messages of any service
            rpc, outcome, started = _begin(), _Outcome(), time.perf_counter()
            own = _Context(context, ((REQUEST_ID_KEY, rpc.id), *self._trailing()))
            in_flight.inc()
            try:
                return await self._answer(lambda: run(behaviour, request, own), own, outcome, rpc.id)
            finally:
                in_flight.dec()
                duration_s = time.perf_counter() - started
                duration(outcome.code).observe(duration_s)
                if isinstance(outcome.error, CitadelError):
                    self._metrics.rpc_refusals.labels(label, outcome.error.rule).inc()
                self._write_line(rpc, outcome, method=method, peer=context.peer(), duration_s=duration_s)

        return observed

    async def _answer(self, answer: Answer, context: _Context, outcome: _Outcome, id: str) -> Any:  # noqa: ANN401 - as above
        try:
            reply = await answer()
        except asyncio.CancelledError:
            outcome.code = _why_cancelled(context)
            raise
        except grpc.aio.AbortError:
            outcome.code = context.code()
            raise
        except Exception as error:  # the edge: whatever a handler raises becomes a status here
            if _client_is_gone(error):
                outcome.code = _why_cancelled(context)
                raise asyncio.CancelledError from error
            outcome.error = error
            delay = retry_delay(error, usual=self._retry_after, uniform=self._uniform())
            refusal = refusal_of(error, request_id=id, retry_after=delay)
            outcome.code = refusal.code
            await context.refuse(refusal)
        else:
            outcome.code = context.code() or grpc.StatusCode.OK
            return reply

    def _write_line(self, rpc: _Rpc, outcome: _Outcome, *, method: str, peer: str, duration_s: float) -> None:
        """Every RPC has one; of refusals in a flood only some do."""
        level = _level(outcome.code, method)
        if outcome.code not in _ALWAYS_TOLD and not self._floods.may_write(outcome.why, peer_of(peer).address):
            return
        facts = rpc.facts | {
            "method": method,
            "code": outcome.code.name,
            "peer": peer,
            "duration_s": round(duration_s, 6),
        }
        if isinstance(outcome.error, CitadelError):
            facts |= {"rule": outcome.error.rule, "error": outcome.error.message}
        if outcome.code is grpc.StatusCode.INTERNAL:
            facts["exc_info"] = outcome.error
        _log.log(level, events.RPC_FINISHED, **facts)


@dataclass(slots=True)
class _Outcome:
    """How an RPC ended: what its line and its measurement say."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    error: Exception | None = None

    @property
    def why(self) -> str:
        """The rule that was broken, else the code."""
        return self.error.rule if isinstance(self.error, CitadelError) else self.code.name


class _Context:
    """The context that handlers see: grpc's own, with our metadata on whatever ends the RPC."""

    def __init__(self, context: Context, ours: Metadata) -> None:
        self._context = context
        self._ours = tuple(ours)
        self._theirs: Metadata = ()
        context.set_trailing_metadata(self._ours)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - everything else is grpc's
        return getattr(self._context, name)

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        self._theirs = tuple(trailing_metadata)
        self._context.set_trailing_metadata((*self._theirs, *self._ours))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> Never:
        await self._context.abort(code, details, (*(trailing_metadata or self._theirs), *self._ours))

    async def abort_with_status(self, status: grpc.Status) -> Never:
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    async def refuse(self, refusal: Refusal) -> Never:
        """End the RPC by raising, also where nobody is there any more to be told."""
        trailing: list[tuple[str, str | bytes]] = [(DETAILS_KEY, refusal.details())]
        if refusal.retry_after is not None:
            trailing.append((PUSHBACK_KEY, str(int(refusal.retry_after / timedelta(milliseconds=1)))))
        try:
            await self.abort(refusal.code, refusal.message, trailing)
        except grpc.aio.InternalError as gone:
            raise asyncio.CancelledError from gone


def _begin() -> _Rpc:
    rpc = _Rpc()
    _current.set(rpc)
    structlog.contextvars.bind_contextvars(request_id=rpc.id)
    return rpc


def _client_is_gone(error: Exception) -> bool:
    """What grpc raises when it writes to somebody who is not there; in a group where tasks share a stream."""
    if isinstance(error, ExceptionGroup):
        return error.split(grpc.aio.InternalError)[1] is None
    return isinstance(error, grpc.aio.InternalError)


def _why_cancelled(context: _Context) -> grpc.StatusCode:
    """A client that went away, or its deadline; the time that remains is None where there was none."""
    return grpc.StatusCode.DEADLINE_EXCEEDED if context.time_remaining() == 0 else grpc.StatusCode.CANCELLED


def _level(code: grpc.StatusCode, method: str) -> int:
    if code is grpc.StatusCode.OK:
        return logging.DEBUG if method.startswith(_QUIET) else logging.INFO
    return _LEVELS.get(code, logging.INFO)


_LEVELS = {grpc.StatusCode.INTERNAL: logging.ERROR, grpc.StatusCode.UNAVAILABLE: logging.WARNING}


async def _unary(behaviour: Callable[..., Awaitable[Any]], request: object, context: Context) -> Any:  # noqa: ANN401 - as above
    return await behaviour(request, context)


async def _stream(behaviour: Callable[..., Any], request: object, context: Context) -> None:
    """Run a handler of streams. Its generator is closed before the RPC ends, so that it can clean up.

    To a handler that reads, a client that goes away can look like one that has said all it had to say:
    such a stream ends as OK or as CANCELLED, whichever grpc tells first.
    """
    responses = behaviour(request, context)
    if inspect.isasyncgen(responses):
        async with aclosing(responses):
            async for response in responses:
                await context.write(response)
    else:
        await responses


async def _unimplemented(_requests: AsyncIterator[bytes], context: Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")


_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
