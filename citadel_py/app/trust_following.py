"""The trust stream of an agent, wired: where it calls, what it keeps over a restart, and whom hints concern."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from citadel_py.agent.ca_call import Door
from citadel_py.agent.ca_client import CAClient
from citadel_py.agent.trust_client import TrustClient
from citadel_py.agent.trust_state import LAST_MOMENTS
from citadel_py.app.runtime import Supervisor, uniform, utcnow
from citadel_py.app.trust_reports import TrustReports
from citadel_py.config import AgentSettings
from citadel_py.core.errors import BadInput, Unavailable
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.trust import RenewalHint, Trust
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.rotator.judgement import is_valid
from citadel_py.store.trust import TrustFile

TRUST: Final = "trust.json"  # below the directory of --state
_MAX_NAME_BYTES: Final = 128

_log = get_logger()


class TrustFollowing:
    """`load` first, then `start`.

    `held` gives the SVID of an identity; `take` is called with each new trust and `hurry` with whoever is
    to be renewed. The service itself is verified by the newest trust, too.
    """

    def __init__(
        self,
        settings: AgentSettings,
        source: CAClient,
        reports: TrustReports,
        *,
        held: Callable[[SpiffeID], HeldSVID | None],
        take: Callable[[Trust], None],
        hurry: Callable[[SpiffeID], None],
        metrics: AgentMetrics,
    ) -> None:
        self._settings = settings
        self._source = source
        self._reports = reports
        self._held = held
        self._take = take
        self._hurry = hurry
        self._metrics = metrics
        self._file = TrustFile(settings.state / TRUST)
        self._kept: Trust | None = None
        self._client: TrustClient | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong with what the CA sends, in words."""
        return self._client.problem if self._client else None

    @property
    def is_told(self) -> bool:
        """Whether changes come as they are made, and are taken."""
        return self._client is not None and self._client.is_connected and self._client.problem is None

    async def load(self) -> tuple[Trust, datetime] | None:
        """What was kept from before a restart, as far as it is good now, and when that was."""
        trust_domain = self._settings.identities[0].trust_domain
        try:
            found = await asyncio.to_thread(self._file.load, trust_domain)
        except (BadInput, Unavailable) as error:
            _log.error(events.TRUST_REFUSED, part="file", rule=error.rule, error=error.message)
            return None
        if found is None:
            return None
        trust, saved_at = found
        self._kept, _ = trust.at(utcnow() + LAST_MOMENTS)
        self._source.trust(trust.bundle)
        return self._kept, saved_at

    def start(self, supervisor: Supervisor) -> None:
        """Follow the CA from now on."""
        client = self._client = TrustClient(
            self._settings.identities[0].trust_domain,
            name=agent_name(self._settings.state),
            door=self.door,
            held=self._kept,
            keep=lambda trust: self._file.save(trust, utcnow()),
            on_trust=self._taken,
            on_hint=self.obey,
            reports=self._reports.reports,
            now=utcnow,
            uniform=uniform,
            metrics=self._metrics,
        )
        supervisor.start("trust stream", client.run())
        supervisor.start("trust reports", self._reports.run(client.reports_changed))

    async def door(self, *, is_doubtful: bool) -> Door | None:
        """Where to call, by the first certificate that is good: the news are the same. Raises CitadelError."""
        now = utcnow()
        held = next((one for id in self._settings.identities if (one := self._held(id)) and is_valid(one, now)), None)
        return await self._source.certificate_door(held, is_doubtful=is_doubtful) if held else None

    def obey(self, hint: RenewalHint) -> None:
        """Each certificate that is meant has its own moment, so that they do not come all at once."""
        now = utcnow()
        concerned = [id for id in self._settings.identities if self._is_meant(hint, id)]
        _log.info(events.RENEWAL_HINTED, number=hint.number, svids=len(concerned), renew_before=hint.renew_before)
        for id in concerned:
            delay = hint.moment(now, uniform()) - now
            asyncio.get_running_loop().call_later(delay.total_seconds(), partial(self._renew, hint, id))

    def _taken(self, trust: Trust) -> None:
        self._source.trust(trust.bundle)
        self._take(trust)

    def _renew(self, hint: RenewalHint, id: SpiffeID) -> None:
        if self._is_meant(hint, id):  # still
            self._hurry(id)

    def _is_meant(self, hint: RenewalHint, id: SpiffeID) -> bool:
        held = self._held(id)
        return held is not None and hint.concerns(held.svid.serial, held.svid.authority_id)


def agent_name(state: Path) -> str:
    """The same after a restart, and another one for each agent: its machine and its directory."""
    return f"{os.uname().nodename}:{state.absolute()}".encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
