"""The one engine behind the service, the agent and the offline tool: request in, certificate out.

It decides and signs, and does nothing else: whoever calls it appends the entry to the ledger, and
hands the certificate out only once that is durable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from citadel_py.core import profile
from citadel_py.core.csr import CsrPolicy, SigningRequest
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import public_key_sha256
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.policy import Caller, Decision, Grant, Policy, Wanted
from citadel_py.core.x509svid import X509SVID


@dataclass(frozen=True, slots=True)
class Issuance:
    """A signed certificate that may not leave before `entry` is durable in the ledger.

    `decided_by` is the rule of the policy that granted it; None where that was no rule of a file.
    """

    svid: X509SVID
    entry: LedgerEntry
    decided_by: str | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """One snapshot of everything that decides about a certificate.

    `entropy(n)` returns n random bytes; it is passed in so that the engine stays a pure function.
    """

    issuer: Issuer
    policy: Policy
    entropy: Callable[[int], bytes] = field(repr=False)
    csr_policy: CsrPolicy = field(default_factory=CsrPolicy)

    def prepare(
        self,
        request: SigningRequest,
        caller: Caller,
        wanted: Wanted,
        *,
        now: datetime,
        request_id: str,
        shorten_by: float = 0.0,
    ) -> Issuance:
        """Decide, sign and check one certificate. It lives shorter than granted by the part `shorten_by`.

        Raises PermissionDenied, LifetimeRefused, BadInput, InvalidCSR or NotReady; then nothing was
        signed and there is nothing to record.
        """
        decision = self.policy.judge(caller, wanted, request.names)
        grant = self._shortened(decision, shorten_by) if shorten_by else decision.grant
        self.policy.check_names(request.names, grant)
        serial = profile.serial_number(self.entropy(profile.SERIAL_BYTES))
        svid = self.issuer.issue(request.public_key, grant, now=now, serial=serial, spki=request.spki)
        entry = self._entry(svid, request, caller, now=now, request_id=request_id)
        return Issuance(svid, entry, decided_by=str(decision.rule) if decision.rule else None)

    def _shortened(self, decision: Decision, part: float) -> Grant:
        """In whole seconds, and never below the shortest lifetime that could have been asked for."""
        grant, limits = decision.grant, decision.rule.limits if decision.rule else self.policy.limits
        lifetime = timedelta(seconds=int(grant.ttl.total_seconds() * (1 - part)))
        return Grant(grant.id, max(lifetime, limits.minimum), grant.dns, grant.ips)

    def _entry(
        self, svid: X509SVID, request: SigningRequest, caller: Caller, *, now: datetime, request_id: str
    ) -> LedgerEntry:
        return LedgerEntry(
            kind="issued",
            serial=svid.serial,
            spiffe_id=str(svid.id),
            caller=caller.subject,
            method=caller.method,
            public_key_sha256=public_key_sha256(request.spki),
            authority_id=self.issuer.authority.id,
            not_before=svid.not_before,
            not_after=svid.not_after,
            request_id=request_id,
            time=now,
        )
