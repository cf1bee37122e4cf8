"""CreateCertificate: from a call to a certificate that is in the ledger.

The work goes from cheap to dear, and every refusal comes before anything is signed. Errors are
raised as they are; the interceptor of obs turns them into statuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeAlias

import grpc

from citadel_py._proto.istio.v1.auth import ca_pb2, ca_pb2_grpc
from citadel_py.ca.authn import Attested, Authentication, CallCredentials
from citadel_py.ca.group_commit import GroupCommit
from citadel_py.ca.in_flight import InFlight
from citadel_py.ca.wishes import read_wishes
from citadel_py.core.csr import parse_csr_pem
from citadel_py.core.engine import Engine, Issuance
from citadel_py.core.errors import LedgerUnavailable, Unavailable
from citadel_py.core.issuer import Issuer
from citadel_py.core.pem import certificate_pem
from citadel_py.core.ports import Now
from citadel_py.obs.metrics import CAMetrics
from citadel_py.obs.rpc import add_fields, request_id

Context: TypeAlias = grpc.aio.ServicerContext[ca_pb2.IstioCertificateRequest, ca_pb2.IstioCertificateResponse]

SERVICE_NAME = ca_pb2.DESCRIPTOR.services_by_name["IstioCertificateService"].full_name


class CertificateService(ca_pb2_grpc.IstioCertificateServiceServicer):
    """The compatible certificate API. `engine` gives the snapshot that one request is served from."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        authentication: Authentication,
        commits: GroupCommit,
        *,
        in_flight: InFlight,
        now: Now,
        metrics: CAMetrics,
    ) -> None:
        self._engine = engine
        self._authentication = authentication
        self._commits = commits
        self._in_flight = in_flight
        self._now = now
        self._metrics = metrics
        self._upper_part = _UpperPart()

    async def CreateCertificate(  # noqa: N802 - the name is the protocol's
        self, request: ca_pb2.IstioCertificateRequest, context: Context
    ) -> ca_pb2.IstioCertificateResponse:
        """Certify the key of an authenticated caller. Raises CitadelError; then nothing was issued."""
        async with self._in_flight.one():
            _check_deadline(context)
            attested = await self._attest(context)
            _check_deadline(context)  # finding out who calls may have taken a while
            engine, now = self._engine(), self._now()
            wanted = read_wishes(request, engine.policy.limits)
            signing_request = parse_csr_pem(request.csr.encode(), engine.csr_policy)
            issuance = engine.prepare(signing_request, attested.caller, wanted, now=now, request_id=request_id())
            self._use_up(attested, now)
            await self._commits.record(issuance.entry)
            self._tell(issuance)
            return self._answer(engine.issuer, issuance)

    async def _attest(self, context: Context) -> Attested:
        attested = await self._authentication.attest(credentials_of(context), now=self._now())
        add_fields(caller=attested.caller.subject, attested_by=attested.caller.method)
        return attested

    def _use_up(self, attested: Attested, now: datetime) -> None:
        try:
            attested.use_up(now)
        except LedgerUnavailable as error:
            self._commits.doubt(error)
            raise

    def _tell(self, issuance: Issuance) -> None:
        entry = issuance.entry
        add_fields(spiffe_id=entry.spiffe_id, serial=entry.serial, not_after=entry.not_after.isoformat())
        if issuance.decided_by:
            add_fields(decided_by=issuance.decided_by)
        self._metrics.certificates_issued.labels(entry.method).inc()

    def _answer(self, issuer: Issuer, issuance: Issuance) -> ca_pb2.IstioCertificateResponse:
        """Leaf, one element for each intermediate, and the whole bundle as the last one."""
        leaf = issuance.svid.pem_elements()[0].decode()
        return ca_pb2.IstioCertificateResponse(cert_chain=(leaf, *self._upper_part.of(issuer)))


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


def credentials_of(context: Context) -> CallCredentials:
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


def _check_deadline(context: Context) -> None:
    """Raise before any crypto where nobody waits for the answer any more; None means no deadline."""
    if context.time_remaining() == 0:
        raise Unavailable("the caller's deadline has passed", rule="deadline_passed")
