"""What an agent makes of what the CA sends on the trust stream. No I/O, no clock: news in, decisions out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from citadel_py.core.errors import CitadelError
from citadel_py.core.trust import ProxyReport, RenewalHint, Trust, TrustVersion, succeed

# Peers that still have a list when it ends refuse everybody, so it is taken back a little before.
LAST_MOMENTS: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of news: the trust where it is another one than before, and in words what was left out of it."""

    trust: Trust | None
    problems: tuple[str, ...] = ()


class TrustState:
    """What is held, what was refused, and which hints were followed."""

    def __init__(self, held: Trust | None = None) -> None:
        self.held = held
        self.refused: CitadelError | None = None
        self._refused_version: TrustVersion | None = None
        self._refusals = 0
        self._followed: frozenset[int] = frozenset()

    def take(self, news: Trust, now: datetime) -> Taken:
        """Hold the news, as far as they are good. Raises VerificationFailed where they may not follow what is held."""
        trust, problems = succeed(news, self.held, now=now + LAST_MOMENTS)
        self.refused = self._refused_version = None
        return self._hold(trust, problems)

    def refuse(self, version: TrustVersion | None, error: CitadelError) -> bool:
        """News could not be taken; whether that is the first time."""
        is_first = self.refused is None or (version, error.rule) != (self._refused_version, self.refused.rule)
        self.refused, self._refused_version = error, version
        self._refusals += is_first
        return is_first

    def judge(self, now: datetime) -> Taken:
        """Let go of revocation lists that are about to end."""
        if self.held is None:
            return Taken(None)
        return self._hold(*self.held.at(now + LAST_MOMENTS))

    def follow(self, hints: Iterable[RenewalHint]) -> list[RenewalHint]:
        """Those that are new."""
        given = list(hints)
        fresh = [hint for hint in given if hint.number not in self._followed]
        self._followed = frozenset(hint.number for hint in given)
        return fresh

    def report(self) -> ProxyReport:
        """The agent's own."""
        return ProxyReport(
            proxy="",
            resource="",
            acknowledged=self.held.version if self.held else None,
            rejected=self._refused_version,
            reason=self.refused.rule if self.refused else "",
            rejections=self._refusals,
        )

    def _hold(self, trust: Trust, problems: tuple[str, ...]) -> Taken:
        is_news = self.held is None or trust.version != self.held.version
        self.held = trust
        return Taken(trust if is_news else None, problems)
