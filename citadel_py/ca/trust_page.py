"""Who trusts what, as a document for people and programs. It shows reports as they are and decides nothing."""

from __future__ import annotations

from typing import Final

from citadel_py.ca.evidence import Evidence, State
from citadel_py.ca.trust import TrustService

PATH: Final = "/trust"  # on the admin listener

# Problems first.
_ORDER: Final = (State.REJECTED, State.BEHIND, State.GONE, State.CURRENT)


def trust_page(service: TrustService, *, limit: int = 1000) -> dict[str, object]:
    """The table as JSON has it, those that are not current first. Counts are of all; `proxies` are at most `limit`."""
    served = service.served
    ordered = sorted(service.evidence, key=lambda each: _ORDER.index(each.state(served.version)))
    return {
        "version": 1,
        "trust_domain": served.trust_domain.name,
        "sequence": served.version.sequence,
        "bundle_hash": served.version.bundle_hash,
        "crl_hash": served.version.crl_hash,
        "crls_end_at": f"{served.crls_end_at:%FT%TZ}" if served.crls_end_at else None,
        "count": {state.value: service.count().get(state, 0) for state in State},
        "lacking": len(service.evidence.lacking(served.version.sequence)),
        "is_complete": len(ordered) <= limit,
        "proxies": [_row(each, each.state(served.version)) for each in ordered[:limit]],
    }


def _row(evidence: Evidence, state: State) -> dict[str, object]:
    report = evidence.report
    return {
        "state": state.value,
        "caller": evidence.caller,
        "agent": evidence.agent,
        "proxy": report.proxy,
        "resource": report.resource,
        "acknowledged_sequence": report.acknowledged.sequence if report.acknowledged else None,
        "acknowledged_crl_hash": report.acknowledged.crl_hash if report.acknowledged else None,
        "rejected_sequence": report.rejected.sequence if report.rejected else None,
        "reason": report.reason,
        "rejections": report.rejections,
        "time": f"{evidence.time:%FT%TZ}",
        "gone_at": f"{evidence.gone_at:%FT%TZ}" if evidence.gone_at else None,
    }
