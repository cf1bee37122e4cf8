"""What proxies have taken of the trust that they were sent: states of SDS become reports for the CA.

A proxy answers with versions of secrets; here it is known which trust each of them was made of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from citadel_py.core.secrets import Secret, TrustSecret
from citadel_py.core.trust import ProxyReport, Trust, TrustVersion
from citadel_py.sds.evidence import Evidence, ProxyState

# Of a secret that it was not told the origin of nobody knows which trust a proxy has: then it counts as none.
MAX_VERSIONS: Final = 4096
REASON: Final = "rejected_by_proxy"  # its own words can hold a private key


class TrustReports:
    """Tell it what is `served`; it says what became of it."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self._made_of: OrderedDict[str, TrustVersion] = OrderedDict()  # by the version of the secret
        self._names: set[str] = set()

    def served(self, secrets: Iterable[Secret], trust: Trust) -> None:
        """These are served now, made of this trust. Those that did not change by it are of it too."""
        for secret in secrets:
            if isinstance(secret, TrustSecret):
                self._names.add(secret.name)
                self._made_of[secret.version] = trust.version
                self._made_of.move_to_end(secret.version)
        while len(self._made_of) > MAX_VERSIONS:
            self._made_of.popitem(last=False)
        self.evidence.changed()

    def reports(self) -> Iterator[ProxyReport]:
        """Of all proxies now, for each name under which they have trust."""
        return (self._report(state) for state in self.evidence.snapshot() if state.resource in self._names)

    async def run(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever there may be other reports, until cancelled."""
        with self.evidence.listen() as event:
            while True:
                await event.wait()
                event.clear()
                changed()

    def _report(self, state: ProxyState) -> ProxyReport:
        rejected = self._made_of.get(state.rejected) if state.rejected else None
        return ProxyReport(
            proxy=" ".join(filter(None, (state.via, state.peer, state.node))),
            resource=state.resource,
            acknowledged=self._made_of.get(state.acknowledged) if state.acknowledged else None,
            rejected=rejected,
            reason=REASON if rejected else "",
            rejections=int(rejected is not None),
            streams=state.streams,
        )
