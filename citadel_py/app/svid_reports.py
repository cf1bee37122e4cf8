"""What the renewer reports, as log lines and counts: louder as a certificate's life runs out."""

from __future__ import annotations

from datetime import datetime

from citadel_py.core.errors import CitadelError, Unavailable
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.rotator.judgement import Urgency
from citadel_py.rotator.renewer import Loaded, NotSaved, RenewalFailed, Renewed, Report

_log = get_logger()


class SVIDReports:
    """Tells of all identities."""

    def __init__(self, metrics: AgentMetrics) -> None:
        self._metrics = metrics
        self._told_expired: set[SpiffeID] = set()

    def __call__(self, report: Report) -> None:
        match report:
            case Loaded():
                self._tell_loaded(report)
            case Renewed():
                self._tell_renewed(report)
            case RenewalFailed():
                self._tell_failed(report)
            case NotSaved():
                self._tell_not_saved(report)

    def _tell_loaded(self, report: Loaded) -> None:
        _log.info(events.SVID_LOADED, **_facts(report.held))
        if not report.is_valid:
            self._tell_expired(report.held)

    def _tell_renewed(self, report: Renewed) -> None:
        self._metrics.svid_renewals.labels("renewed").inc()
        self._told_expired.discard(report.held.svid.id)
        _log.info(events.SVID_RENEWED, **_facts(report.held))

    def _tell_failed(self, report: RenewalFailed) -> None:
        result = "unavailable" if isinstance(report.error, Unavailable) else "refused"
        self._metrics.svid_renewals.labels(result).inc()
        tell = _log.warning if report.urgency is Urgency.CALM else _log.error
        tell(
            events.SVID_RENEWAL_FAILED,
            spiffe_id=str(report.id),
            failures=report.failures,
            retry_at=_shown(report.retry_at),
            not_after=_shown(report.held.svid.not_after) if report.held else None,
            urgency=str(report.urgency),
            **_reason(report.error),
        )
        if report.held is not None and report.urgency is Urgency.EXPIRED:
            self._tell_expired(report.held)

    def _tell_not_saved(self, report: NotSaved) -> None:
        self._metrics.svid_renewals.labels("unavailable").inc()
        _log.error(
            events.SVID_RENEWAL_FAILED,
            **_facts(report.held),
            is_published=report.is_published,
            retry_at=_shown(report.retry_at),
            **_reason(report.error),
        )

    def _tell_expired(self, held: HeldSVID) -> None:
        if held.svid.id not in self._told_expired:
            _log.critical(events.SVID_EXPIRED, **_facts(held))
        self._told_expired.add(held.svid.id)


def _facts(held: HeldSVID) -> dict[str, str]:
    return {
        "spiffe_id": str(held.svid.id),
        "serial": held.svid.serial,
        "not_after": _shown(held.svid.not_after),
        "renew_at": _shown(held.renew_at),
    }


def _reason(error: CitadelError) -> dict[str, object]:
    return {"error": error.message, "rule": error.rule, "hints": list(error.hints)}


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
