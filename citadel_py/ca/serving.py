"""The certificate of our own listeners: made by our own authority, in the ledger, renewed in time.

gRPC asks for it at each handshake, on a thread of its own, and gets a snapshot: a renewal needs no
restart, and connections that are open go on.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import grpc

from citadel_py.core.csr import RequestedNames, SigningRequest
from citadel_py.core.engine import Engine
from citadel_py.core.errors import CitadelError
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.policy import Caller, IPAddress, Method, Wanted, check_dns_name
from citadel_py.core.ports import Now, Uniform
from citadel_py.core.renewal import Backoff, RenewalPolicy
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.x509svid import X509SVID
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger

CA_PATH = "/citadel-py/ca"
LONGEST_SLEEP = timedelta(seconds=30)  # wall clocks jump: laptops sleep, time gets corrected
_NO_NAMES = RequestedNames()

_log = get_logger()


@dataclass(frozen=True, slots=True)
class ServerNames:
    """What clients dial: DNS names and IP addresses, `localhost` always among them."""

    dns: tuple[str, ...]
    ips: tuple[IPAddress, ...]

    @classmethod
    def parse(cls, names: Sequence[str] = ()) -> ServerNames:
        """Names and addresses as they are written in settings. Raises BadInput."""
        dns, ips = ["localhost"], [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
        for name in names:
            try:
                ips.append(ipaddress.ip_address(name))
            except ValueError:
                check_dns_name(name)
                dns.append(name)
        return cls(tuple(dict.fromkeys(dns)), tuple(dict.fromkeys(ips)))


@dataclass(frozen=True, slots=True)
class Served:
    """One serving certificate, who made it, and when it is to be replaced."""

    svid: X509SVID
    issuer: Issuer
    renew_at: datetime
    configuration: grpc.ServerCertificateConfiguration = field(repr=False)


class ServingCertificate:
    """Keeps a serving certificate current. `record` makes its ledger entry durable."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        record: Callable[[LedgerEntry], Awaitable[None]],
        *,
        names: ServerNames,
        now: Now,
        uniform: Uniform,
        renewal: RenewalPolicy | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._engine = engine
        self._record = record
        self._names = names
        self._now = now
        self._uniform = uniform
        self._renewal = renewal or RenewalPolicy()
        self._backoff = backoff or Backoff()
        self._served: Served | None = None
        self._failures = 0
        self._due: datetime | None = None
        self._look = asyncio.Event()

    @property
    def served(self) -> Served:
        """The current one. It is an error of the program to ask before the first `renew`."""
        if self._served is None:
            raise RuntimeError("there is no serving certificate yet")
        return self._served

    async def renew(self) -> None:
        """Make a new key and certificate, and serve it once it is recorded. Raises CitadelError."""
        engine, now = self._engine(), self._now()
        key = generate_key(KeyType.P256)  # microseconds; RSA would not belong on the event loop
        issuance = engine.prepare(
            SigningRequest(key.public_key(), _NO_NAMES),
            Caller(Method.SELF, "serve"),
            Wanted(ca_id(engine.policy.trust_domain), self._names.dns, self._names.ips),
            now=now,
            request_id=engine.entropy(16).hex(),
        )
        await self._record(issuance.entry)
        svid, issuer = issuance.svid, engine.issuer
        configuration = grpc.ssl_server_certificate_configuration(
            [(private_key_pem(key), svid.chain_pem())], root_certificates=issuer.bundle.to_pem()
        )
        self._due = self._renewal.renew_at(now, svid.not_after, self._uniform())
        self._served = Served(svid, issuer, self._due, configuration)
        _log.info(events.SERVING_CERTIFICATE_ROTATED, serial=svid.serial, not_after=svid.not_after.isoformat())

    def look(self) -> None:
        """Say that the engine may have changed, or the clock."""
        self._look.set()

    async def run(self) -> None:
        """Renew ahead of expiry and when another authority signs, until cancelled. The last good one is served."""
        while True:
            await self._sleep()
            if self._is_due():
                await self._try_to_renew()

    def credentials(self, *, require_client_certificate: bool) -> grpc.ServerCredentials:
        """Credentials of a listener, which follow the current certificate and bundle."""
        given = self.served.configuration

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Runs on a thread of grpc at each handshake; None says that nothing changed."""
            nonlocal given
            current = self.served.configuration
            if current is given:
                return None
            given = current
            return current

        return grpc.dynamic_ssl_server_credentials(
            given,
            fetch,  # type: ignore[arg-type]  # its documentation allows None, the stubs do not
            require_client_authentication=require_client_certificate,
        )

    async def _sleep(self) -> None:
        left = (self._due or self._now()) - self._now()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(left, timedelta(0)), LONGEST_SLEEP).total_seconds()):
                await self._look.wait()
        self._look.clear()

    def _is_due(self) -> bool:
        other_authority = self.served.issuer is not self._engine().issuer and self._failures == 0
        return other_authority or self._due is None or self._now() >= self._due

    async def _try_to_renew(self) -> None:
        try:
            await self.renew()
        except CitadelError as error:
            self._failures += 1
            not_after = self.served.svid.not_after
            self._due = self._backoff.retry_at(self._now(), self._failures, not_after, self._uniform())
            _log.warning(events.SERVING_CERTIFICATE_FAILED, error=str(error), rule=error.rule, failures=self._failures)
        else:
            self._failures = 0


def ca_id(trust_domain: TrustDomain) -> SpiffeID:
    """The identity of the certificate service itself."""
    return SpiffeID(trust_domain, CA_PATH)
