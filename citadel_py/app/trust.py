"""What this service has its agents trust: the bundle of the engine of now, and the revocation lists beside it.

The lists are the optional file crl.pem in the authority's directory, followed by content. What is
bad is told and left out, and never keeps a certificate from being issued: the last good lists go on
for as long as they are valid, and then there are none.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509

from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import CRL, ends_at, load_crls
from citadel_py.core.engine import Engine
from citadel_py.core.errors import CitadelError, VerificationFailed
from citadel_py.core.issuer import Issuer
from citadel_py.core.ports import Now
from citadel_py.core.trust import Trust, check_succession
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import CAMetrics
from citadel_py.store import authority_dir

LOOK_EVERY: Final = timedelta(seconds=1)  # a revocation is wanted everywhere within about that
# Peers that still have a list when it ends refuse everybody, so it is taken back a little before.
LAST_MOMENTS: Final = timedelta(seconds=60)
JUDGE_EVERY: Final = timedelta(minutes=1)

_log = get_logger()


@dataclass(frozen=True, slots=True)
class ListsFile:
    """The file of revocation lists as it was read. `content` is None where there is none, or it cannot be read."""

    content: bytes | None = field(repr=False)
    crls: tuple[CRL, ...] = ()
    problem: str | None = None

    @property
    def digest(self) -> str:
        """Equal for equal content."""
        return hashlib.sha256(self.content or (self.problem or "").encode()).hexdigest()

    @classmethod
    def read(cls, directory: Path, before: Self | None = None) -> Self:
        """What it holds; where that is what it held `before`, that. It is slow: call it in a thread."""
        content = None
        try:
            content = authority_dir.read_crls(directory)
            if before is not None and content is not None and content == before.content:
                return before
            return cls(content, load_crls(content) if content is not None else ())
        except CitadelError as error:
            return cls(content, problem=f"{authority_dir.CRLS} cannot be used: {error.message}")


class LiveTrust:
    """The trust of now, as one snapshot. `publish` is told of each, with the id of the authority that signs.

    Unless it `follows` the file it has the lists that it is told to `take`.
    """

    def __init__(
        self,
        directory: Path,
        engine: Callable[[], Engine],
        *,
        publish: Callable[[Trust, str], None],
        now: Now,
        metrics: CAMetrics,
        follows: bool = True,
    ) -> None:
        self._directory = directory
        self._follows = follows
        self._engine = engine
        self._publish = publish
        self._now = now
        self._file: ListsFile | None = None  # the last that could be read
        self._read: tuple[CRL, ...] = ()  # what it held, the last time that it could be read
        self._good: tuple[CRL, ...] = ()  # the last that could be served
        self._intermediates: tuple[x509.Certificate, ...] = ()
        self._bundle: Bundle | None = None  # the newest that agents take
        self._problems: dict[str, str | None] = {}
        self._look = asyncio.Event()
        self._judged: tuple[object, ...] = ()
        self._judge_again_at = now()
        self.crls: tuple[CRL, ...] = ()  # what is served
        metrics.crl_next_update.set_function(self._next_update)

    def problem(self) -> str | None:
        """What is wrong, in words; none of it keeps anybody from issuing."""
        return "; ".join(filter(None, (*self._problems.values(), self._ending()))) or None

    async def load(self) -> None:
        """Take bundle and lists as they are now."""
        if self._follows:
            self._take(await asyncio.to_thread(ListsFile.read, self._directory, self._file))
        self.refresh()

    def take(self, file: ListsFile) -> None:
        """Use these lists from now on, where they are any good."""
        self._take(file)
        self.refresh()

    def refresh(self) -> None:
        """Judge what was read anew, for another engine and as time goes by, and publish what comes of it."""
        issuer, now = self._engine().issuer, self._now() + LAST_MOMENTS
        if self._judged == (issuer.bundle, issuer.intermediates, self._read) and now < self._judge_again_at:
            return
        self._judge(issuer, now)
        self._judged = issuer.bundle, issuer.intermediates, self._read
        self._judge_again_at = min(filter(None, (ends_at(self.crls), now + JUDGE_EVERY)))

    def look(self) -> None:
        """Take another engine's bundle now, and look at the file at once."""
        self.refresh()
        self._look.set()

    async def run(self) -> None:
        """Follow the file and the clock until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                    await self._look.wait()
            self._look.clear()
            await self.load()

    def _take(self, file: ListsFile) -> None:
        if file.problem is not None:
            self._told("file", file.problem)
        elif file.content is not None:
            self._file, self._read = file, file.crls
            self._told("file", None)
        elif self._file is not None:
            self._told("file", f"{authority_dir.CRLS} is gone: the lists that it held go on until they end")

    def _judge(self, issuer: Issuer, now: datetime) -> None:
        self._remember_intermediates(issuer, now)
        trust, problems = self._trust(issuer, self._read).at(now, before=self._trust(issuer, self._good))
        if not trust.crls:
            trust, _ = self._trust(issuer, self._good).at(now)
        self._told("lists", "; ".join(problems) or None)
        self._told("bundle", self._problem_of_succession(issuer.bundle))
        if trust.crls != self.crls:
            _log.info(events.CRLS_LOADED, crls=len(trust.crls), revoked=sum(map(len, trust.crls)))
        self.crls = trust.crls
        self._good = trust.crls or self._good
        self._publish(trust, issuer.authority.id)

    def _trust(self, issuer: Issuer, crls: tuple[CRL, ...]) -> Trust:
        return Trust(issuer.bundle, crls, self._intermediates)

    def _remember_intermediates(self, issuer: Issuer, now: datetime) -> None:
        """Leaves of an intermediate that signs no more are still there, and need its list as the others do."""
        earlier = (each for each in self._intermediates if each.not_valid_after_utc > now)
        self._intermediates = tuple(dict.fromkeys((*issuer.intermediates, *earlier)))

    def _problem_of_succession(self, bundle: Bundle) -> str | None:
        try:
            check_succession(bundle, self._bundle or bundle)
        except VerificationFailed as error:
            return f"agents refuse the bundle: {error.message}"
        if self._bundle is None or bundle.sequence > self._bundle.sequence:
            self._bundle = bundle
        return None

    def _told(self, what: str, problem: str | None) -> None:
        """Keep what is wrong, and log it once."""
        if problem is not None and problem != self._problems.get(what):
            _log.error(events.TRUST_REFUSED, part=what, error=problem)
        self._problems[what] = problem

    def _ending(self) -> str | None:
        """Told from the last quarter of a list's life on."""
        now = self._now()
        for crl in self.crls:
            begin, end = crl.last_update_utc, crl.next_update_utc
            if end is not None and now > end - (end - begin) / 4:
                return f"a revocation list ends at {end:%FT%TZ} and there is no newer one: then there are none"
        return None

    def _next_update(self) -> float:
        end = ends_at(self.crls)
        return end.timestamp() if end else math.nan
