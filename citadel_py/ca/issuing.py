"""From an authenticated request to a certificate that is in the ledger: what all issuing APIs share.

The work goes from cheap to dear, and every refusal comes before anything is signed. Errors are
raised as they are; the APIs turn them into what they speak.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache

from citadel_py.ca.authn import Attested, Authentication, CallCredentials
from citadel_py.ca.gate import Gate
from citadel_py.ca.group_commit import GroupCommit
from citadel_py.core.admission import Ask, Peer, Priority, priority_of
from citadel_py.core.csr import CsrPolicy, SigningRequest
from citadel_py.core.engine import Engine, Issuance
from citadel_py.core.errors import LedgerUnavailable, Unauthenticated, Unavailable
from citadel_py.core.issuer import Issuer
from citadel_py.core.policy import Wanted
from citadel_py.core.ports import Now, Uniform
from citadel_py.core.renewal import RenewalPolicy
from citadel_py.core.x509svid import X509SVID
from citadel_py.obs.metrics import CAMetrics


@dataclass(frozen=True, slots=True)
class Order:
    """One request. `parse` reads its CSR; `ends_at` is its deadline on the monotonic clock, None where it has none."""

    wanted: Wanted
    parse: Callable[[CsrPolicy], SigningRequest] = field(repr=False)
    request_id: str
    ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is in the ledger, the issuer that it came from, and when to renew it."""

    issuance: Issuance
    issuer: Issuer
    renew_at: datetime

    @property
    def svid(self) -> X509SVID:
        return self.issuance.svid

    def facts(self) -> dict[str, object]:
        """What a log line says of it."""
        entry = self.issuance.entry
        facts = {"spiffe_id": entry.spiffe_id, "serial": entry.serial, "not_after": entry.not_after.isoformat()}
        decided_by = self.issuance.decided_by
        return {**facts, "decided_by": decided_by} if decided_by else dict(facts)


class Issuing:
    """`engine` gives the snapshot that one request is served from; `renewal` is the window of renewals.

    `ttl_spread` is the part by which lifetimes are shortened at most, so that clients that began together
    do not come back together.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        authentication: Authentication,
        commits: GroupCommit,
        gate: Gate,
        *,
        now: Now,
        uniform: Uniform,
        metrics: CAMetrics,
        renewal: RenewalPolicy | None = None,
        ttl_spread: float = 0.0,
    ) -> None:
        self._engine = engine
        self._authentication = authentication
        self._commits = commits
        self._gate = gate
        self._now = now
        self._uniform = uniform
        self._count = cache(metrics.certificates_issued.labels)  # by method, of which there are few
        self._renewal = renewal or RenewalPolicy()
        self._ttl_spread = ttl_spread

    @property
    def engine(self) -> Engine:
        """The snapshot of now."""
        return self._engine()

    async def attest(self, credentials: CallCredentials, peer: Peer) -> Attested:
        """Who calls. Raises Unauthenticated, LimitReached after too many failures, or Unavailable.

        Whom TLS has verified is no stranger: what its neighbours do is not held against it.
        """
        now = self._now()
        origin = Peer(peer.connection, peer.connection) if credentials.peer_chain else peer
        self._gate.check_stranger(origin, now)
        try:
            return await self._authentication.attest(credentials, now=now)
        except Unauthenticated:
            self._gate.failed(origin, now)
            raise

    async def issue(self, attested: Attested, order: Order, peer: Peer) -> Issued:
        """Decide, sign and record when it is this caller's turn. Raises CitadelError; then nothing was issued."""
        check_deadline(order.ends_at)  # finding out who calls may have taken a while
        async with self._gate.one(self._ask(attested, order, peer)):
            check_deadline(order.ends_at)  # it may have waited
            engine, now = self._engine(), self._now()
            request = order.parse(engine.csr_policy)
            issuance = engine.prepare(
                request,
                attested.caller,
                order.wanted,
                now=now,
                request_id=order.request_id,
                shorten_by=self._ttl_spread * self._uniform(),
            )
            await self._use_up(attested, now)
            await self._commits.record(issuance.entry)
        self._count(issuance.entry.method).inc()
        renew_at = self._renewal.renew_at(now, issuance.svid.not_after, self._uniform())
        return Issued(issuance, engine.issuer, renew_at)

    def _ask(self, attested: Attested, order: Order, peer: Peer) -> Ask:
        caller, wanted_id = attested.caller, order.wanted.id
        spiffe_id = wanted_id or caller.id
        return Ask(
            caller=caller.subject,
            id=str(spiffe_id),
            peer=peer,
            priority=_priority(attested, is_own=spiffe_id == caller.id, now=self._now()),
            patience=None if order.ends_at is None else timedelta(seconds=order.ends_at - time.monotonic()),
        )

    async def _use_up(self, attested: Attested, now: datetime) -> None:
        if attested.use_up is None:
            return
        try:
            await attested.use_up(now)
        except LedgerUnavailable as error:
            self._commits.doubt(error)
            raise


def _priority(attested: Attested, *, is_own: bool, now: datetime) -> Priority:
    """What a certificate says of another identity's need is nothing, neither that it is great nor that it is small."""
    if attested.caller.is_probe:
        return Priority.PROBE
    if attested.held is not None and not is_own:
        return Priority.NEAR_EXPIRY
    return priority_of(attested.held, now)


def check_deadline(ends_at: float | None) -> None:
    """Raise Unavailable, before any crypto, where nobody waits for the answer any more; None means no deadline."""
    if ends_at is not None and time.monotonic() >= ends_at:
        raise Unavailable("the caller's deadline has passed", rule="deadline_passed")
