"""Bundles of other trust domains, from files that are read anew on a timer; the last good one of each wins.

Contents are compared, not times: mounted files change in ways that notifications miss. A file that
is away or broken takes nothing from what it said before, and nothing from other files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from citadel_py.config import FederatedFile
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import CitadelError
from citadel_py.core.pem import MAX_PEM_BYTES
from citadel_py.core.spiffe import TrustDomain
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.store.files import read_bounded

READ_EVERY: Final = timedelta(seconds=5)

_log = get_logger()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What reading a file came to."""

    bundle: Bundle | None = None
    problem: str | None = None


class Federation:
    """Call `load` once before anything is served, then `run` beside it; `changed` is called after each change."""

    def __init__(self, files: Iterable[FederatedFile], changed: Callable[[], None]) -> None:
        self._files = tuple(files)
        self._changed = changed
        self._bundles: Mapping[TrustDomain, Bundle] = {}
        self._problems: Mapping[TrustDomain, str | None] = {}

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """The last good bundle of each trust domain that there was one of, in the order of the settings."""
        return tuple(self._bundles[each.trust_domain] for each in self._files if each.trust_domain in self._bundles)

    def checks(self) -> Mapping[str, str | None]:
        """Readiness: a trust domain without any bundle is a problem. One whose file went bad later is in the log."""
        return {
            f"federated {each.trust_domain}": None if each.trust_domain in self._bundles else self._problem_of(each)
            for each in self._files
        }

    async def load(self) -> None:
        """Read all files and take over what is good."""
        outcomes = {each.trust_domain: await asyncio.to_thread(_read, each) for each in self._files}
        good = {name: outcome.bundle for name, outcome in outcomes.items() if outcome.bundle}
        changed = [name for name, bundle in good.items() if not _is_same(bundle, self._bundles.get(name))]
        self._tell_failed({name: outcome.problem for name, outcome in outcomes.items()})
        self._bundles = {**self._bundles, **good}
        for name in changed:
            _log.info(events.BUNDLE_CHANGED, trust_domain=str(name), authorities=len(good[name].authorities))
        if changed:
            self._changed()

    async def run(self) -> None:
        """Never ends."""
        while True:
            await asyncio.sleep(READ_EVERY.total_seconds())
            await self.load()

    def _tell_failed(self, problems: Mapping[TrustDomain, str | None]) -> None:
        """Each problem once, until it is another one or has gone."""
        for name, problem in problems.items():
            if problem and problem != self._problems.get(name):
                is_served = name in self._bundles
                _log.error(events.FEDERATION_FAILED, trust_domain=str(name), error=problem, is_served=is_served)
        self._problems = problems

    def _problem_of(self, file: FederatedFile) -> str:
        return self._problems.get(file.trust_domain) or "not read yet"


def _read(file: FederatedFile) -> _Outcome:
    try:
        data = read_bounded(file.path, MAX_PEM_BYTES)
        # PEM may begin with any text; the SPIFFE format is one JSON object.
        parse = Bundle.from_jwks if data.lstrip().startswith(b"{") else Bundle.from_pem
        return _Outcome(bundle=parse(file.trust_domain, data))
    except CitadelError as error:
        return _Outcome(problem=f"{file.path}: {error.message}")


def _is_same(bundle: Bundle, other: Bundle | None) -> bool:
    return other is not None and bundle.content_hash == other.content_hash
