"""The policy file as live rules: read at the start, and read again when its content changes.

A file that cannot be used, or is not there any more, is reported and left alone: the rules that were
good last go on. Nothing here decides what rules mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from citadel_py.core.errors import CitadelError, InvalidConfiguration
from citadel_py.core.policy import TTLLimits
from citadel_py.core.policy_file import MAX_POLICY_BYTES, parse_policy
from citadel_py.core.policy_rules import Rules
from citadel_py.core.spiffe import TrustDomain
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import CAMetrics
from citadel_py.store.files import read_bounded

LOOK_EVERY = timedelta(seconds=10)

_log = get_logger()


class LivePolicy:
    """Follows one file; `use` gets each new set of rules, on the event loop.

    `problem` says what is wrong with the file as it is now, while rules from before are in use.
    """

    def __init__(
        self,
        path: Path,
        use: Callable[[Rules], None],
        *,
        limits: TTLLimits,
        trust_domain: TrustDomain,
        metrics: CAMetrics,
    ) -> None:
        self._path = path
        self._use = use
        self._limits = limits
        self._trust_domain = trust_domain
        self._metrics = metrics
        self._content: bytes | None = None
        self._look = asyncio.Event()
        self.problem: str | None = None

    async def load(self) -> None:
        """Take the file as it is now. Raises CitadelError; then nothing changed."""
        content = await asyncio.to_thread(read_bounded, self._path, MAX_POLICY_BYTES)
        if content == self._content and self.problem is None:
            return
        rules = await asyncio.to_thread(self._parse, content)
        self._use(rules)
        self._content, self.problem = content, None
        self._metrics.policy_reloads.labels("loaded").inc()
        _log.info(events.POLICY_LOADED, file=str(self._path), rules=len(rules.all))

    def look(self) -> None:
        """Look at once, and say again what is wrong: what SIGHUP asks for."""
        self._look.set()

    async def run(self) -> None:
        """Follow the file until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                    await self._look.wait()
            was_asked = self._look.is_set()
            self._look.clear()
            await self._try_to_load(was_asked=was_asked)

    async def _try_to_load(self, *, was_asked: bool) -> None:
        try:
            await self.load()
        except CitadelError as error:
            if was_asked or str(error) != self.problem:  # else the same one would be told every few seconds
                self._metrics.policy_reloads.labels("rejected").inc()
                _log.error(events.POLICY_REJECTED, error=str(error), rule=error.rule, hints=list(error.hints))
            self.problem = str(error)

    def _parse(self, content: bytes) -> Rules:
        try:
            return parse_policy(content, limits=self._limits, trust_domain=self._trust_domain)
        except InvalidConfiguration as error:
            raise InvalidConfiguration(f"{self._path}: {error.message}", rule=error.rule, hint=error.hints) from error
