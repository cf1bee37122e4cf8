"""How each identity of an agent stands: what it holds, when that ends, and why there is nothing newer.

It learns from what the renewer reports. Nothing here is secret, and the metrics do not grow with the
number of identities.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from citadel_py.core.errors import CitadelError, Unavailable
from citadel_py.core.ports import HeldSVID, Now
from citadel_py.core.spiffe import SpiffeID
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.redaction import redact_text
from citadel_py.rotator.judgement import Urgency, is_valid, urgency
from citadel_py.rotator.renewer import Loaded, NotSaved, RenewalFailed, Renewed, Report

_FIRST = datetime.min.replace(tzinfo=UTC)
_ONE_LOOK = timedelta(seconds=1)
_MOST_NAMED = 3  # identities in one line of readiness


@dataclass(slots=True)
class Standing:
    """One identity. `held` is what proxies have, or what was found expired; `error` is the last since a success."""

    id: SpiffeID
    sockets: Sequence[str] = ()
    held: HeldSVID | None = None
    failures: int = 0
    error: CitadelError | None = None
    retry_at: datetime | None = None

    def urgency(self, now: datetime) -> Urgency:
        return urgency(self.held, now)

    @property
    def is_refused(self) -> bool:
        """Whether the authority said no, and not that it cannot now."""
        return self.error is not None and not isinstance(self.error, Unavailable)

    def problem(self, now: datetime) -> str | None:
        """In words, why proxies have no valid certificate."""
        if self.held is None:
            return f"there is none yet{f': {self.error.message}' if self.is_refused and self.error else ''}"
        if is_valid(self.held, now):
            return None
        begin, end = self.held.svid.not_before, self.held.svid.not_after
        return f"it ended at {end:%FT%TZ}" if now >= end else f"it begins at {begin:%FT%TZ}: was the clock set back?"

    def document(self, now: datetime) -> dict[str, object]:
        """For the status page in JSON."""
        held, error = self.held, self.error
        return {
            "spiffe_id": str(self.id),
            "sockets": list(self.sockets),
            "urgency": str(self.urgency(now)),
            "serial": held.svid.serial if held else None,
            "not_after": _shown(held.svid.not_after if held else None),
            "renew_at": _shown(self.retry_at or (held.renew_at if held else None)),
            "failures": self.failures,
            "last_error": {"rule": error.rule, "message": redact_text(error.message)} if error else None,
        }


class Standings:
    """Of all identities; call it with each report."""

    def __init__(
        self, identities: Iterable[SpiffeID], sockets: Mapping[SpiffeID, Sequence[str]], metrics: AgentMetrics, now: Now
    ) -> None:
        self._now = now
        self._counted: tuple[datetime, Counter[Urgency]] | None = None
        self._all = {id: Standing(id, sockets.get(id, ())) for id in identities}
        metrics.svid_not_after.set_function(self._first_end)
        for level in Urgency:
            metrics.svids.labels(level).set_function(partial(self._count, level))

    def __call__(self, report: Report) -> None:
        self._counted = None
        standing = self._all[report.id if isinstance(report, RenewalFailed) else report.held.svid.id]
        match report:
            case Loaded():
                standing.held = report.held
            case Renewed():
                standing.held, standing.failures = report.held, 0
                standing.error = standing.retry_at = None
            case RenewalFailed():
                standing.failures, standing.error, standing.retry_at = report.failures, report.error, report.retry_at
            case NotSaved():
                standing.held = report.held if report.is_published else standing.held
                standing.failures += 1
                standing.error, standing.retry_at = report.error, report.retry_at

    def problem(self) -> str | None:
        """What takes readiness away: whoever has nothing valid, unless it was refused and others have not.

        A refusal of one identity is its own affair: it is told by `degraded` while there is anybody to serve.
        """
        without = list(self._without())
        is_anybody_served = len(without) < len(self._all)
        return self._told([each for each in without if not (each.is_refused and is_anybody_served)])

    def degraded(self) -> str | None:
        """Who was refused while others are served."""
        without = list(self._without())
        return self._told([each for each in without if each.is_refused]) if len(without) < len(self._all) else None

    def document(self) -> dict[str, object]:
        """All of it, the most pressing first."""
        now = self._now()
        ordered = sorted(self._all.values(), key=lambda each: each.held.svid.not_after if each.held else _FIRST)
        return {"version": 1, "identities": [each.document(now) for each in ordered]}

    def _without(self) -> Iterator[Standing]:
        now = self._now()
        return (each for each in self._all.values() if each.held is None or not is_valid(each.held, now))

    def _told(self, standings: Sequence[Standing]) -> str | None:
        """One line: of one identity among one just what is wrong, else how many and the first of them by name."""
        now = self._now()
        if not standings:
            return None
        if len(self._all) == 1:
            return standings[0].problem(now)
        named = [f"{each.id}: {each.problem(now)}" for each in standings[:_MOST_NAMED]]
        more = ["..."] if len(standings) > _MOST_NAMED else []
        return f"{len(standings)} of {len(self._all)} have no valid certificate: {'; '.join((*named, *more))}"

    def _first_end(self) -> float:
        ends = (each.held.svid.not_after.timestamp() for each in self._all.values() if each.held)
        return min(ends, default=math.nan)

    def _count(self, level: Urgency) -> int:
        """Counted once for the samples of one look."""
        now = self._now()
        if self._counted is None or abs(now - self._counted[0]) > _ONE_LOOK:
            self._counted = now, Counter(each.urgency(now) for each in self._all.values())
        return self._counted[1][level]


def _shown(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
