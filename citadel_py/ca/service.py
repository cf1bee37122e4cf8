"""CreateCertificate, the compatible API: what gRPC carries to the issuing core, and back.

Errors are raised as they are; the interceptor of obs turns them into statuses.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias, cast

import grpc

from citadel_py._proto.istio.v1.auth import ca_pb2, ca_pb2_grpc
from citadel_py.ca.authn import CallCredentials
from citadel_py.ca.in_flight import InFlight
from citadel_py.ca.issuing import Issued, Issuing, Order, check_deadline
from citadel_py.ca.wishes import read_wishes
from citadel_py.core.csr import CsrPolicy, SigningRequest, parse_csr_pem
from citadel_py.core.issuer import Issuer
from citadel_py.core.pem import certificate_pem
from citadel_py.obs.peers import peer_of
from citadel_py.obs.rpc import add_fields, request_id

Context: TypeAlias = grpc.aio.ServicerContext[ca_pb2.IstioCertificateRequest, ca_pb2.IstioCertificateResponse]

SERVICE_NAME = ca_pb2.DESCRIPTOR.services_by_name["IstioCertificateService"].full_name
RENEW_AT_KEY = "citadel-renew-at"  # RFC 3339, UTC, whole seconds


class CertificateService(ca_pb2_grpc.IstioCertificateServiceServicer):
    """The compatible certificate API."""

    def __init__(self, issuing: Issuing, in_flight: InFlight) -> None:
        self._issuing = issuing
        self._in_flight = in_flight
        self._upper_part = _UpperPart()

    async def CreateCertificate(  # noqa: N802 - the name is the protocol's
        self, request: ca_pb2.IstioCertificateRequest, context: Context
    ) -> ca_pb2.IstioCertificateResponse:
        """Certify the key of an authenticated caller. Raises CitadelError; then nothing was issued.

        The trailing metadata of an answer asks the client to renew at the moment that was drawn for it.
        """
        async with self._in_flight.one():
            issued = await self._issue(request, context)
            add_fields(**issued.facts())
            context.set_trailing_metadata(((RENEW_AT_KEY, rfc3339(issued.renew_at)),))
            return self._answer(issued)

    async def _issue(self, request: ca_pb2.IstioCertificateRequest, context: Context) -> Issued:
        def parse(policy: CsrPolicy) -> SigningRequest:
            return parse_csr_pem(request.csr.encode(), policy)

        ends_at = _deadline_of(context)
        check_deadline(ends_at)
        peer = peer_of(context.peer())
        attested = await self._issuing.attest(credentials_of(context), peer)
        add_fields(caller=attested.caller.subject, attested_by=attested.caller.method)
        wanted = read_wishes(request, self._issuing.engine.policy.limits)
        return await self._issuing.issue(attested, Order(wanted, parse, request_id(), ends_at), peer)

    def _answer(self, issued: Issued) -> ca_pb2.IstioCertificateResponse:
        """Leaf, one element for each intermediate, and the whole bundle as the last one."""
        leaf = issued.svid.leaf_pem.decode()
        return ca_pb2.IstioCertificateResponse(cert_chain=(leaf, *self._upper_part.of(issued.issuer)))


class _UpperPart:
    """What the answers of one issuer have in common, encoded once."""

    def __init__(self) -> None:
        self._issuer: Issuer | None = None
        self._elements: tuple[str, ...] = ()

    def of(self, issuer: Issuer) -> tuple[str, ...]:
        if issuer is not self._issuer:
            above = (certificate_pem(certificate) for certificate in issuer.intermediates)
            self._elements = tuple(pem.decode() for pem in (*above, issuer.bundle.to_pem()))
            self._issuer = issuer
        return self._elements


def credentials_of(context: grpc.aio.ServicerContext[Any, Any]) -> CallCredentials:
    """What came with the call; nothing of it is believed yet."""
    metadata = context.invocation_metadata() or ()
    authorization = tuple(value for key, value in metadata if key == "authorization")
    return CallCredentials(authorization, _peer_chain(context.auth_context()))


def _peer_chain(facts: Mapping[str, object]) -> bytes | None:
    """The client's certificates as TLS has them: the leaf by itself, then the others."""
    parts = [part for name in ("x509_pem_cert", "x509_pem_cert_chain") for part in _values(facts, name)]
    return b"".join(parts) or None


def _values(facts: Mapping[str, object], name: str) -> list[bytes]:
    found = facts.get(name, ())
    return [value for value in found if isinstance(value, bytes)] if isinstance(found, list | tuple) else []


def _deadline_of(context: Context) -> float | None:
    """On the monotonic clock; None where the call has none."""
    left_s = cast("float | None", context.time_remaining())  # the stubs forget the call without a deadline
    return None if left_s is None else time.monotonic() + left_s


def rfc3339(moment: datetime) -> str:
    """`2026-03-04T05:06:07Z`, for moments in UTC; formats with % cost ten times as much."""
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"
