"""What an agent's proxies trust now: one bundle of the own trust domain for all identities, and those of others.

The bundle comes with each certificate, and may come by itself. What came last counts; of what was
saved before a restart, what came with the certificate that was issued last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from citadel_py.app.federation import Federation
from citadel_py.app.served_socket import Trusted
from citadel_py.core.errors import VerificationFailed
from citadel_py.core.ports import HeldSVID, Now
from citadel_py.core.trust import Trust
from citadel_py.core.verify import verify_svid
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger

_log = get_logger()


class AgentTrust:
    """`is_live` is set once everything from before the restart was seen."""

    def __init__(self, federation: Federation, now: Now) -> None:
        self._federation = federation
        self._now = now
        self._own: Trust | None = None
        self._issued_at = datetime.min.replace(tzinfo=UTC)
        self.is_live = False

    @property
    def current(self) -> Trusted | None:
        """None while there is no bundle yet."""
        return Trusted(self._own, self._federation.bundles) if self._own else None

    def learn(self, fresh: Sequence[HeldSVID], *, is_told: bool = False) -> bool:
        """Take the bundle that came with the latest of these; whether it is another one.

        Where changes are told as they are made (`is_told`), another bundle that came with a certificate
        is one of a CA that lags behind, unless it is what the certificate needs.
        """
        latest = max(fresh, key=lambda held: held.issued_at)
        if is_told and self._verifies(latest):
            return False
        if not self.is_live and latest.issued_at <= self._issued_at:
            return False
        self._issued_at = latest.issued_at
        if self._own is None:
            return self.replace(Trust(latest.bundle))
        if self._own.bundle.content_hash == latest.bundle.content_hash:
            return False
        # Revocation lists stay only as far as they speak for all of the new authorities.
        return self.replace(replace(self._own, bundle=latest.bundle).at(self._now())[0])

    def restore(self, trust: Trust, saved_at: datetime) -> bool:
        """Take what came by itself before a restart, unless a certificate brought its bundle later."""
        return saved_at >= self._issued_at and self.replace(trust)

    def replace(self, trust: Trust) -> bool:
        """Take this; whether it is anything else than before."""
        before, self._own = self._own, trust
        if before is None or before.version == trust.version:
            return before is None
        if before.bundle.content_hash != trust.bundle.content_hash:
            authorities = len(trust.bundle.authorities)
            _log.info(events.BUNDLE_CHANGED, trust_domain=str(trust.trust_domain), authorities=authorities)
        return True

    def _verifies(self, held: HeldSVID) -> bool:
        if self._own is None:
            return False
        try:
            verify_svid(held.svid.chain, self._own.bundle, now=self._now())
        except VerificationFailed:
            return False
        return True
