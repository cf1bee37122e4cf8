"""The authority of a directory as a live engine: loaded, and loaded again when the files change.

Changes are told by content, on a timer and on demand. What cannot be used is reported and left
alone: the engine that works stays. The directory is only read here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from citadel_py.app.runtime import entropy, utcnow
from citadel_py.config import ServeSettings
from citadel_py.core import profile
from citadel_py.core.csr import CsrPolicy
from citadel_py.core.engine import Engine
from citadel_py.core.errors import CitadelError, InvalidConfiguration, Unavailable
from citadel_py.core.issuer import Issuer
from citadel_py.core.policy import Policy, TTLLimits
from citadel_py.core.policy_rules import Rules
from citadel_py.core.ports import Now
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.store import authority_dir
from citadel_py.store.files import read_bounded

LOOK_EVERY = timedelta(seconds=10)
_MAX_PASSPHRASE_BYTES = 4096

_log = get_logger()


def read_passphrase(path: Path | None) -> bytes | None:
    """The passphrase in a file, without the newline at its end. Raises InvalidConfiguration, Unavailable."""
    if path is None:
        return None
    passphrase = read_bounded(path, _MAX_PASSPHRASE_BYTES).removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise InvalidConfiguration(f"the passphrase in {path} is empty", rule="passphrase_empty")
    return passphrase


@dataclass(frozen=True, slots=True)
class AuthorityFiles:
    """Where an authority is and how it is to issue. Both methods read files and are slow: call them in a thread."""

    directory: Path
    passphrase: bytes | None = field(repr=False)
    limits: TTLLimits
    csr_policy: CsrPolicy
    relax_names: bool
    now: Now

    def engine(self) -> Engine:
        """An engine that has signed and verified a probe.

        Raises CitadelError where the files, the authority or the lifetimes cannot work.
        """
        held, now = authority_dir.load(self.directory, passphrase=self.passphrase), self.now()
        serial = profile.serial_number(entropy(profile.SERIAL_BYTES))
        issuer = Issuer.activated(held.authority, held.intermediates, held.bundle, now=now, serial=serial)
        issuer.check_ttl_fits(self.limits, now=now)
        policy = Policy(held.trust_domain, self.limits, relax_names=self.relax_names)
        return Engine(issuer, policy, entropy, self.csr_policy)

    def fingerprint(self) -> str:
        """Changes when the files do."""
        return authority_dir.content_fingerprint(self.directory)


def authority_files(settings: ServeSettings, passphrase: bytes | None) -> AuthorityFiles:
    """The authority as the settings of the service want it."""
    return AuthorityFiles(
        directory=settings.dir,
        passphrase=passphrase,
        limits=settings.ttl_limits,
        csr_policy=CsrPolicy(allow_ed25519=settings.allow_ed25519),
        relax_names=settings.relax_names,
        now=utcnow,
    )


@dataclass(frozen=True, slots=True)
class PreparedEngine:
    """An engine that works, and the fingerprint of the files that it came from."""

    engine: Engine = field(repr=False)
    digest: str


class LiveEngine:
    """The engine of now, as one snapshot that is replaced in one assignment."""

    def __init__(self, files: AuthorityFiles) -> None:
        self._files = files
        self._engine: Engine | None = None
        self._rules: Rules | None = None
        self._fingerprint = ""

    @property
    def current(self) -> Engine:
        """The engine in use. It is an error of the program to ask before the first `load`."""
        if self._engine is None:
            raise RuntimeError("no authority has been loaded")
        return self._engine

    async def load(self) -> None:
        """Take the files as they are now. Raises CitadelError; then nothing changed."""
        self.activate(await self.prepare())

    async def prepare(self) -> PreparedEngine:
        """What `activate` would use from now on; nothing changes yet. Raises CitadelError."""
        self._fingerprint = await asyncio.to_thread(self._files.fingerprint)  # first: a change meanwhile counts as new
        engine = await asyncio.to_thread(self._files.engine)
        self._check_same_trust_domain(engine)
        if await asyncio.to_thread(self._files.fingerprint) != self._fingerprint:
            raise Unavailable("the authority's files changed while they were read", rule="authority_changing")
        return PreparedEngine(engine, self._fingerprint)

    def activate(self, prepared: PreparedEngine) -> None:
        """Issue by it from the next request on."""
        self._engine = _ruled_by(self._rules, prepared.engine)
        issuer = prepared.engine.issuer
        _log.info(
            events.AUTHORITY_ACTIVATED,
            trust_domain=str(issuer.trust_domain),
            authority=issuer.authority.id,
            not_after=issuer.not_after.isoformat(),
            bundle_sequence=issuer.bundle.sequence,
        )

    def use_rules(self, rules: Rules) -> None:
        """Decide by these from the next request on; a new authority is used with them too."""
        self._rules = rules
        self._engine = _ruled_by(rules, self.current)

    async def run(self, on_change: Callable[[], None]) -> None:
        """Follow the files until cancelled; `on_change` is called after each new engine, on the event loop."""
        while True:
            await asyncio.sleep(LOOK_EVERY.total_seconds())
            if await asyncio.to_thread(self._files.fingerprint) != self._fingerprint:
                await self.reload(on_change)

    async def reload(self, on_change: Callable[[], None]) -> None:
        """Load, changed or not; what cannot be used is told, and changes nothing."""
        try:
            await self.load()
        except CitadelError as error:
            _log.error(events.AUTHORITY_REJECTED, error=str(error), rule=error.rule, hints=list(error.hints))
        else:
            on_change()

    def _check_same_trust_domain(self, engine: Engine) -> None:
        if self._engine is not None and self._engine.policy.trust_domain != engine.policy.trust_domain:
            raise InvalidConfiguration(
                f"the directory now holds {engine.policy.trust_domain} in place of {self._engine.policy.trust_domain}",
                rule="trust_domain_changed",
                hint="restart the service if that is meant",
            )


def _ruled_by(rules: Rules | None, engine: Engine) -> Engine:
    return replace(engine, policy=replace(engine.policy, rules=rules))
