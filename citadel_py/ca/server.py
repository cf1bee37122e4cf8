"""The listeners of the certificate service, and how they begin and end.

grpcio cannot ask for a client certificate without demanding one, so there are two: one for callers
with tokens, one for callers with certificates. Every answer of the first says where the second is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from citadel_py._proto.citadel.v1 import issuance_pb2_grpc
from citadel_py._proto.istio.v1.auth import ca_pb2_grpc
from citadel_py.ca.health import SERVICE_NAME as HEALTH_NAME
from citadel_py.ca.health import Health
from citadel_py.ca.in_flight import InFlight
from citadel_py.ca.issuance import SERVICE_NAME as ISSUANCE_NAME
from citadel_py.ca.issuance import IssuanceService
from citadel_py.ca.service import SERVICE_NAME, CertificateService
from citadel_py.ca.serving import ServingCertificate
from citadel_py.ca.trust import SERVICE_NAME as TRUST_NAME
from citadel_py.ca.trust import TrustService
from citadel_py.core.errors import Unavailable
from citadel_py.core.ports import Uniform
from citadel_py.obs.metrics import Metrics
from citadel_py.obs.rpc import Metadata, RpcInterceptor

MTLS_PORT_KEY = "citadel-mtls-port"

PATIENCE = timedelta(milliseconds=500)  # how long answers are held back at most, for requests to be begun
GOODBYE = timedelta(milliseconds=50)  # for word of the end to reach clients before their answers do

# Beyond IN_FLIGHT a caller is told when to come back; beyond MAX_RPCS, most of which are trust streams
# that wait for news, grpc refuses by itself. Each request has at most MAX_REQUEST_BYTES, so that this
# bounds memory too.
IN_FLIGHT = 512
MAX_RPCS = 5120
MAX_REQUEST_BYTES = 64 * 1024  # a CSR has at most 16 KiB
MAX_ANSWER_BYTES = 4 * 1024 * 1024  # the bundle is the operator's


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one listener. Ages and idle times make clients come back, to whoever serves then."""

    handshake: timedelta = timedelta(seconds=10)
    idle: timedelta = timedelta(minutes=15)
    age: timedelta = timedelta(hours=1)
    age_grace: timedelta = timedelta(seconds=30)
    keepalive: timedelta = timedelta(minutes=1)  # finds peers that vanished without a word
    keepalive_timeout: timedelta = timedelta(seconds=20)
    ping_interval: timedelta = timedelta(seconds=10)  # agents that ping more often are sent away
    streams_per_connection: int = 256
    connections: int = 20_000
    pending_requests: int = 4096
    shares_port: bool = False  # unless wanted, a second process on this port is a mistake, not a helper

    def options(self) -> list[tuple[str, int]]:
        """As grpc calls them. Nothing that matters here is left to its defaults."""
        return [
            ("grpc.so_reuseport", int(self.shares_port)),
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
            ("grpc.max_metadata_size", 24 * 1024),  # a bearer token has at most 16 KiB
            ("grpc.absolute_max_metadata_size", 32 * 1024),
            ("grpc.max_concurrent_streams", self.streams_per_connection),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.server.max_pending_requests", self.pending_requests),
            ("grpc.server.max_pending_requests_hard_limit", 2 * self.pending_requests),
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake)),
            ("grpc.max_connection_idle_ms", _ms(self.idle)),
            ("grpc.max_connection_age_ms", _ms(self.age)),
            ("grpc.max_connection_age_grace_ms", _ms(self.age_grace)),
            ("grpc.keepalive_time_ms", _ms(self.keepalive)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.ping_interval)),
            ("grpc.http2.max_ping_strikes", 2),
        ]


class CAServer:
    """Both listeners with the certificate APIs, standard health and reflection."""

    def __init__(
        self,
        service: CertificateService,
        issuance: IssuanceService,
        serving: ServingCertificate,
        in_flight: InFlight,
        *,
        trust: TrustService,
        metrics: Metrics,
        uniform: Uniform,
        limits: Limits | None = None,
    ) -> None:
        self._serving = serving
        self._in_flight = in_flight
        self._issuance = issuance
        self._trust = trust
        self._health = Health(SERVICE_NAME, ISSUANCE_NAME, TRUST_NAME)
        self.address = ""
        self.mtls_address = ""
        self.own_address = ""

        def build(trailing: Callable[[], Metadata]) -> grpc.aio.Server:
            server = grpc.aio.server(
                interceptors=[RpcInterceptor(metrics, uniform=uniform, trailing=trailing)],
                options=(limits or Limits()).options(),
                maximum_concurrent_rpcs=MAX_RPCS,
            )
            ca_pb2_grpc.add_IstioCertificateServiceServicer_to_server(service, server)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            issuance_pb2_grpc.add_IssuanceServiceServicer_to_server(issuance, server)
            server.add_generic_rpc_handlers((trust.handlers(),))
            names = (SERVICE_NAME, ISSUANCE_NAME, TRUST_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
            return server

        self._for_tokens = build(lambda: ((MTLS_PORT_KEY, _port(self.mtls_address)),))
        self._for_certificates = build(tuple)

    async def start(self, listen: str, listen_mtls: str | None = None, *, has_own_door: bool = False) -> None:
        """Listen at `HOST:PORT`; port 0 takes a free one, which `address` and `mtls_address` tell.

        Without `listen_mtls` that listener gets a free port of the same host. With `has_own_door` it
        also listens at `own_address`, on loopback: calls to it reach this process, and no other that
        may share the other addresses. Health says
        NOT_SERVING until told otherwise. Raises Unavailable where an address cannot be had.
        """
        await self.set_serving(serving=False)
        self.mtls_address = self._listen(
            self._for_certificates, listen_mtls or f"{_host(listen)}:0", require_client_certificate=True
        )
        self.address = self._listen(self._for_tokens, listen, require_client_certificate=False)
        if has_own_door:
            self.own_address = self._listen(self._for_certificates, "127.0.0.1:0", require_client_certificate=True)
        await self._for_certificates.start()
        await self._for_tokens.start()

    async def set_serving(self, *, serving: bool) -> None:
        """What the health service answers from now on. Without effect once `stop` began."""
        await self._health.set_serving(serving=serving)

    async def tell_checks(self, checks: Mapping[str, str | None]) -> None:
        """Serve while none of these checks has a problem; each is a service of its own for those who ask."""
        await self.set_serving(serving=not any(checks.values()))
        await self._health.tell_checks(checks)

    async def stop(self, grace: timedelta) -> None:
        """Take no new requests, finish those that are in the works, at most for `grace`. To be called once."""
        await self._health.end()
        self._issuance.end()
        self._trust.end()
        self._in_flight.hold()
        await self._in_flight.quiet(patience=min(grace, PATIENCE))
        both = (self._for_tokens, self._for_certificates)
        stopping = asyncio.gather(*(server.stop(grace.total_seconds()) for server in both))
        await asyncio.sleep(min(grace, GOODBYE).total_seconds())
        self._in_flight.release()
        await stopping

    def _listen(self, server: grpc.aio.Server, address: str, *, require_client_certificate: bool) -> str:
        credentials = self._serving.credentials(require_client_certificate=require_client_certificate)
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise Unavailable(
                f"cannot listen on {address}", rule="listen_failed", hint="is another process listening there?"
            ) from error
        return f"{_host(address)}:{port}"


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)
