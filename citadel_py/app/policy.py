"""The policy file as live rules: read at the start, and read again when its content changes.

A file that cannot be used, or is not there any more, is reported and left alone: the rules that were
good last go on. Nothing here decides what rules mean.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class PreparedRules:
    """Rules that are good, and the content of the file that they came from."""

    rules: Rules
    content: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """Equal for equal content."""
        return hashlib.sha256(self.content).hexdigest()


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
        self.problem: str | None = None

    async def load(self) -> None:
        """Take the file as it is now. Raises CitadelError; then nothing changed."""
        content = await asyncio.to_thread(read_bounded, self._path, MAX_POLICY_BYTES)
        if content == self._content and self.problem is None:
            return
        self.activate(await self._prepared(content))

    async def prepare(self) -> PreparedRules:
        """What `activate` would use from now on; nothing changes yet. Raises CitadelError."""
        return await self._prepared(await asyncio.to_thread(read_bounded, self._path, MAX_POLICY_BYTES))

    def activate(self, prepared: PreparedRules) -> None:
        """Decide by these rules from the next request on."""
        self._use(prepared.rules)
        self._content, self.problem = prepared.content, None
        self._metrics.policy_reloads.labels("loaded").inc()
        _log.info(events.POLICY_LOADED, file=str(self._path), rules=len(prepared.rules.all))

    async def run(self) -> None:
        """Follow the file until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY.total_seconds())
            await self.reload()

    async def reload(self, *, was_asked: bool = False) -> None:
        """Load what has changed; what cannot be used is told once, or again when somebody asked."""
        try:
            await self.load()
        except CitadelError as error:
            if was_asked or str(error) != self.problem:  # else the same one would be told every few seconds
                self._metrics.policy_reloads.labels("rejected").inc()
                _log.error(events.POLICY_REJECTED, error=str(error), rule=error.rule, hints=list(error.hints))
            self.problem = str(error)

    async def _prepared(self, content: bytes) -> PreparedRules:
        return PreparedRules(await asyncio.to_thread(self._parse, content), content)

    def _parse(self, content: bytes) -> Rules:
        try:
            return parse_policy(content, limits=self._limits, trust_domain=self._trust_domain)
        except InvalidConfiguration as error:
            raise InvalidConfiguration(f"{self._path}: {error.message}", rule=error.rule, hint=error.hints) from error
