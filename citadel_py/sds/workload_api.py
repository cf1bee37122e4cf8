"""The SPIFFE Workload API on gRPC: streams that send what there is at once, and again whenever it changes.

The Unix socket is the credential of whoever calls (Workload Endpoint 5 forbids to ask for another);
the header that each call must have keeps out requests that somebody was tricked into making.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import grpc

from citadel_py.core.errors import BadInput, Unavailable
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.workload import Answers, Workload

SERVICE: Final = "SpiffeWorkloadAPI"
HEADER: Final = ("workload.spiffe.io", "true")  # Workload Endpoint 3
MAX_STREAMS: Final = 1024  # a part of what the server takes, so that proxies always find a place

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_log = get_logger()


class WorkloadService:
    """The handlers. One object serves all streams of one workload."""

    def __init__(self, workload: Workload, metrics: AgentMetrics, *, max_streams: int = MAX_STREAMS) -> None:
        self._workload = workload
        self._metrics = metrics
        self._max_streams = max_streams
        self._open = 0

    @property
    def open_streams(self) -> int:
        """How many there are now."""
        return self._open

    def handlers(self) -> grpc.GenericRpcHandler:
        """What to add to a server. Requests of these methods are empty and are not even parsed."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FetchX509SVID": grpc.unary_stream_rpc_method_handler(self.fetch_x509_svid),
                "FetchX509Bundles": grpc.unary_stream_rpc_method_handler(self.fetch_x509_bundles),
                "FetchJWTSVID": grpc.unary_unary_rpc_method_handler(self.refuse_jwt),
                "FetchJWTBundles": grpc.unary_stream_rpc_method_handler(self.refuse_jwt),
                "ValidateJWTSVID": grpc.unary_unary_rpc_method_handler(self.refuse_jwt),
            },
        )

    async def fetch_x509_svid(self, _request: bytes, context: Context) -> None:
        """Certificates, keys and bundles."""
        await self._follow(context, lambda answers: answers.svids)

    async def fetch_x509_bundles(self, _request: bytes, context: Context) -> None:
        """Bundles only: nothing is sent when a certificate is renewed."""
        await self._follow(context, lambda answers: answers.bundles)

    async def refuse_jwt(self, _request: bytes, context: Context) -> None:
        """The JWT-SVID profile is disabled (Workload API 1)."""
        _check_header(context)
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "JWT-SVIDs are not served here: call FetchX509SVID or FetchX509Bundles"
        )

    async def _follow(self, context: Context, part: Callable[[Answers], bytes]) -> None:
        """Ends when the client does, or when the workload closes. A slow reader gets the latest, not each one."""
        _check_header(context)
        sent = None
        with self._place(), self._workload.listen() as wake:
            while not self._workload.is_closed:
                latest = part(self._answers())
                if latest != sent:
                    await context.write(latest)
                    sent = latest
                    self._metrics.workload_pushes.inc()
                    _log.debug(events.WORKLOAD_PUSHED, bytes=len(latest))
                else:
                    await wake.wait()
                    wake.clear()

    def _answers(self) -> Answers:
        """The first response may not wait for an identity to come (Workload API 4.3): clients try again."""
        answers = self._workload.answers
        if answers is None:
            raise Unavailable("there is no identity yet", rule="workload_identity_missing")
        return answers

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._open >= self._max_streams:
            raise Unavailable(f"{self._open} streams of workloads are open already", rule="workload_streams_exhausted")
        self._open += 1
        try:
            with self._metrics.workload_streams.track_inprogress():
                yield
        finally:
            self._open -= 1


def _check_header(context: Context) -> None:
    metadata = context.invocation_metadata() or ()
    if HEADER not in [(key, value) for key, value in metadata]:
        raise BadInput(
            "the call has no metadata workload.spiffe.io: true",
            rule="workload_header_missing",
            hint="use a client of the SPIFFE Workload API, or send this header with each call",
        )
