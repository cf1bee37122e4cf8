"""The service as its own client, which sees whether it issues: from the TLS handshake to the ledger.

It renews a certificate of its own through its own listener, as an agent does, and looks at what
came. Nothing here issues, but for the first certificate that it shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from citadel_py._proto.istio.v1.auth import ca_pb2
from citadel_py.agent.ca_call import Answer, Channels, Door, create_certificate
from citadel_py.core.csr import RequestedNames, SigningRequest, create_csr
from citadel_py.core.duration import format_duration
from citadel_py.core.engine import Engine
from citadel_py.core.errors import CitadelError, Unavailable
from citadel_py.core.grants import PROBE_PATH, Caller, Method, TTLLimits, Wanted
from citadel_py.core.keys import KeyType, PrivateKey, generate_key, private_key_pem, same_public_key
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.pem import load_certificates
from citadel_py.core.ports import Now, Uniform
from citadel_py.core.renewal import Backoff
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.verify import verify_svid
from citadel_py.core.x509svid import X509SVID
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import CAMetrics

PATIENCE = timedelta(seconds=10)  # with one certificate
MISSES = 3  # so many in a row are no accident

_log = get_logger()


@dataclass(frozen=True, slots=True)
class _Shown:
    """The certificate that the probe shows, with its key."""

    svid: X509SVID
    key: PrivateKey


class SelfProbe:
    """Gets a certificate `every` so often, and says why where none comes.

    One attempt that fails is no problem yet, for a flood can do that: none for MISSES times `every`
    is. `record` makes a ledger entry durable, `check(serial)` raises LedgerUnavailable unless that
    certificate is in the ledger. `elapsed` is a clock in seconds that nobody can set.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        record: Callable[[LedgerEntry], Awaitable[None]],
        check: Callable[[str], Awaitable[None]],
        *,
        every: timedelta,
        now: Now,
        elapsed: Callable[[], float],
        uniform: Uniform,
        metrics: CAMetrics,
    ) -> None:
        self._engine = engine
        self._record = record
        self._check = check
        self._every = every
        self._now = now
        self._elapsed = elapsed
        self._uniform = uniform
        self._metrics = metrics
        self._backoff = Backoff(maximum=every)
        self._shown: _Shown | None = None
        self._came_at: float | None = None
        self._failure: str | None = None

    @property
    def problem(self) -> str | None:
        """Why nobody can count on a certificate, in words; None while one came a short time ago."""
        why = f": {self._failure}" if self._failure else ""
        if self._came_at is None:
            return f"no certificate has come yet{why}"
        ago = timedelta(seconds=self._elapsed() - self._came_at)
        if ago <= MISSES * self._every + PATIENCE:
            return None
        return f"the last certificate came {format_duration(ago)} ago{why}"

    @property
    def doubt(self) -> str | None:
        """Why the last attempt failed, while it is too early to call that a problem."""
        return self._failure if self.problem is None else None

    async def run(self, address: str) -> None:
        """Ask the listener at `address` until cancelled."""
        failures = 0
        while True:
            failures = 0 if await self.attempt(address) else failures + 1
            await asyncio.sleep(self._pause(failures).total_seconds())

    async def attempt(self, address: str) -> bool:
        """Ask once; whether all of it was well."""
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                self._shown = await self._renew(address, self._still_good() or await self._first())
        except (CitadelError, TimeoutError) as error:
            self._failed(error)
            return False
        self._came_at, self._failure = self._elapsed(), None
        self._metrics.probes.labels("issued").inc()
        self._metrics.probe_succeeded.set(self._now().timestamp())
        return True

    def _still_good(self) -> _Shown | None:
        shown = self._shown
        return shown if shown and shown.svid.not_after - self._now() > PATIENCE else None

    async def _first(self) -> _Shown:
        """From the engine itself: there is nothing to show yet."""
        engine, key = self._engine(), generate_key(KeyType.P256)
        issuance = engine.prepare(
            SigningRequest(key.public_key(), RequestedNames()),
            Caller(Method.SELF, "serve"),
            Wanted(_id(engine), ttl=self._ttl(engine.policy.limits)),
            now=self._now(),
            request_id=engine.entropy(16).hex(),
        )
        await self._record(issuance.entry)
        return _Shown(issuance.svid, key)

    async def _renew(self, address: str, shown: _Shown) -> _Shown:
        """As agents do: a new key, a new connection, and nothing believed of what comes."""
        engine, key = self._engine(), generate_key(KeyType.P256)
        ttl_s = int(self._ttl(engine.policy.limits).total_seconds())
        request = ca_pb2.IstioCertificateRequest(csr=create_csr(key).decode(), validity_duration=ttl_s)
        bundle = engine.issuer.bundle
        door = Door(address, bundle.to_pem(), shown.svid.chain_pem(), private_key_pem(shown.key))
        answer = await _ask(door, request)
        chain = [each for element in answer.elements[:-1] for each in load_certificates(element.encode())]
        svid = verify_svid(chain, bundle, now=self._now(), expected=_id(engine))
        if not same_public_key(svid.leaf.public_key(), key.public_key()):  # type: ignore[arg-type]  # compared as bytes
            raise CitadelError("the certificate that came is for another key", rule="probe_wrong_key")
        await self._check(svid.serial)
        return _Shown(svid, key)

    def _failed(self, error: CitadelError | TimeoutError) -> None:
        if isinstance(error, CitadelError):
            self._failure, rule = f"{error.message} ({error.rule})", error.rule
        else:
            self._failure, rule = f"no answer within {format_duration(PATIENCE)}", None
        if not isinstance(error, Unavailable) or rule == "ca_call_failed":
            self._shown = None  # what it showed may be the reason
        self._metrics.probes.labels("failed").inc()
        _log.warning(events.PROBE_FAILED, error=self._failure, rule=rule)

    def _ttl(self, limits: TTLLimits) -> timedelta:
        """Long enough to miss a few, and no longer than has to be."""
        return min(max(limits.minimum, (MISSES + 1) * self._every + PATIENCE), limits.maximum)

    def _pause(self, failures: int) -> timedelta:
        if not failures:
            return self._every
        now = self._now()
        return self._backoff.retry_at(now, failures, None, self._uniform()) - now


async def _ask(door: Door, request: ca_pb2.IstioCertificateRequest) -> Answer:
    """One call on a connection of its own."""
    channels = Channels()
    try:
        channel = await channels.to(door)
        return await create_certificate(channel, request, token=None, deadline=PATIENCE, learn_port=lambda _port: None)
    finally:
        await channels.close()


def _id(engine: Engine) -> SpiffeID:
    return SpiffeID(engine.policy.trust_domain, PROBE_PATH)
