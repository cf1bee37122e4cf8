"""`serve`: the parts of the certificate service, wired, started and ended in order. It decides nothing itself.

`serve` runs them in this process; app/worker.py runs the same parts in each of several.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta

from citadel_py.admin.http import AdminServer
from citadel_py.app.authority import LiveEngine, authority_files, read_passphrase
from citadel_py.app.ledger_heads import LedgerHeads
from citadel_py.app.notify import Notifier
from citadel_py.app.policy import LivePolicy
from citadel_py.app.readiness import Readiness
from citadel_py.app.runtime import Supervisor, uniform, utcnow
from citadel_py.app.trust import ListsFile, LiveTrust
from citadel_py.ca.authn import Authentication, Authenticator
from citadel_py.ca.certificate_authn import CertificateAuthenticator
from citadel_py.ca.gate import Gate
from citadel_py.ca.group_commit import GroupCommit
from citadel_py.ca.in_flight import InFlight
from citadel_py.ca.issuance import IssuanceService
from citadel_py.ca.issuing import Issuing
from citadel_py.ca.join_authn import JoinTokenAuthenticator
from citadel_py.ca.jwks import JwksSource, jwks_source
from citadel_py.ca.jwt_authn import JWTAuthenticator, JWTRules
from citadel_py.ca.ledger_thread import PATIENCE as LEDGER_PATIENCE
from citadel_py.ca.ledger_thread import LedgerThread
from citadel_py.ca.server import IN_FLIGHT, CAServer, Limits
from citadel_py.ca.service import CertificateService
from citadel_py.ca.serving import ServerNames, ServingCertificate
from citadel_py.ca.trust import TrustService
from citadel_py.ca.trust_page import PATH as TRUST_PAGE
from citadel_py.ca.trust_page import trust_page
from citadel_py.config import Address, ServeSettings
from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import CRL
from citadel_py.core.engine import Engine
from citadel_py.core.errors import Unavailable
from citadel_py.core.profile import subject_key_id
from citadel_py.core.spiffe import TrustDomain
from citadel_py.obs import events
from citadel_py.obs.logging import configure, get_logger
from citadel_py.obs.metrics import CAMetrics
from citadel_py.store import authority_dir
from citadel_py.store.ledger import SQLLedger

# Its chain in the ledger. Several processes may add to one chain, so that `serve` can be started
# anew beside one that is still ending; the offline tool has a chain of its own.
WRITER = "serve"
# A commit holds up the event loop; so does waiting for another process to finish its own.
BUSY_TIMEOUT = timedelta(milliseconds=250)
HEALTH_EVERY = timedelta(seconds=1)

_log = get_logger()


async def serve(settings: ServeSettings) -> None:
    """Run the service in this process until SIGTERM or SIGINT.

    Raises CitadelError where it cannot begin, and the error of a task that died.
    """
    configure(settings.log_format, settings.log_level)
    passphrase = await asyncio.to_thread(read_passphrase, settings.passphrase_file)
    live = LiveEngine(authority_files(settings, passphrase))
    await live.load()
    metrics = CAMetrics()
    policy = live_policy(settings, live, live.current.policy.trust_domain, metrics)
    heads = LedgerHeads(lambda: live.current)
    with open_ledger(settings, WRITER, heads) as ledger:
        async with Supervisor() as supervisor:
            service = Service(
                settings, live, policy, ledger=ledger, heads=heads, supervisor=supervisor, metrics=metrics
            )
            await _Alone(settings, service, live, policy, supervisor=supervisor).run()
    _log.info(events.PROCESS_STOPPED)


def live_policy(
    settings: ServeSettings, live: LiveEngine, trust_domain: TrustDomain, metrics: CAMetrics
) -> LivePolicy | None:
    """Rules for the engine, where the settings have a file of them."""
    if settings.policy is None:
        return None
    limits = settings.ttl_limits
    return LivePolicy(settings.policy, live.use_rules, limits=limits, trust_domain=trust_domain, metrics=metrics)


def open_ledger(settings: ServeSettings, writer: str, heads: LedgerHeads) -> SQLLedger:
    """The ledger, to add to the chain of `writer`. On a shared one each machine has chains of its own."""
    chain = f"{writer}@{os.uname().nodename}" if settings.ledger else writer
    place = settings.ledger or settings.dir / authority_dir.LEDGER
    return SQLLedger.open(place, writer=chain, busy_timeout=BUSY_TIMEOUT, seal=heads.seal)


class Service:
    """The parts, from the moment at which authority and ledger are there.

    `is_one_of_several` lets other processes of this user listen at the same addresses, and follows no
    file: what is used is what all of them were told to use.
    """

    def __init__(
        self,
        settings: ServeSettings,
        live: LiveEngine,
        policy: LivePolicy | None,
        *,
        ledger: SQLLedger,
        heads: LedgerHeads,
        supervisor: Supervisor,
        metrics: CAMetrics,
        is_one_of_several: bool = False,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._heads = heads
        self.metrics = metrics
        self._live = live
        self._supervisor = supervisor
        self._is_listening = False
        self._policy = policy
        self._jwks = jwks_source(settings.jwt_jwks) if settings.jwt_jwks else None
        self._thread = None if ledger.is_local else LedgerThread(ledger.interrupt)
        self._commits = GroupCommit(ledger, thread=self._thread, observe=self._observe_commit)
        self._readiness = Readiness(
            settings, self._engine, ledger=ledger, commits=self._commits, thread=self._thread, metrics=metrics
        )
        self._serving = ServingCertificate(
            self._engine,
            self._commits.record,
            names=ServerNames.parse(settings.server_name),
            now=utcnow,
            uniform=uniform,
        )
        in_flight = InFlight(IN_FLIGHT)
        issuing = Issuing(
            self._engine,
            Authentication(self._authenticators(ledger)),
            self._commits,
            Gate(settings.admission, now=utcnow, metrics=self.metrics),
            now=utcnow,
            uniform=uniform,
            metrics=self.metrics,
            renewal=settings.renewal,
            ttl_spread=settings.ttl_spread,
        )
        service = CertificateService(issuing, in_flight)
        issuance = IssuanceService(issuing, in_flight, uniform=uniform)
        limits = Limits(shares_port=is_one_of_several)
        self.trust = TrustService(issuing.attest, now=utcnow, uniform=uniform, metrics=self.metrics)
        self._live_trust = LiveTrust(
            settings.dir,
            self._engine,
            publish=self.trust.publish,
            now=utcnow,
            metrics=self.metrics,
            follows=not is_one_of_several,
        )
        self._server = CAServer(
            service,
            issuance,
            self._serving,
            in_flight,
            trust=self.trust,
            metrics=self.metrics,
            uniform=uniform,
            limits=limits,
        )

    @property
    def addresses(self) -> dict[str, str]:
        """Where it listens."""
        return {"listen": self._server.address, "listen_mtls": self._server.mtls_address}

    async def start(self) -> None:
        """From the serving certificate to the listeners. Raises CitadelError; `stop` it then too."""
        await self._readiness.begin()
        await self._serving.renew()
        await self._live_trust.load()
        self.metrics.serving_certificate_not_after.set_function(self._serving_not_after)
        self.metrics.ledger_signed.set_function(lambda: self._heads.signed_at)
        self._tell_authorities()
        if self._jwks is not None:
            await self._begin_jwks(self._jwks)
        self._supervisor.start("serving certificate", self._serving.run())
        self._supervisor.start("revocation lists", self._live_trust.run())
        self._supervisor.start("ledger heads", self._heads.run(self._ledger))
        listen = self._settings.listen
        listen_mtls = self._settings.listen_mtls or Address(listen.host, 0)
        probe = self._readiness.probe
        await self._server.start(str(listen), str(listen_mtls), has_own_door=probe is not None)
        self._is_listening = True
        self._supervisor.start("health", self._keep_health())
        if probe is not None:
            self._supervisor.start("probing", probe.run(self._server.own_address))

    async def stop(self, grace: timedelta) -> None:
        """Answer what is in the works, at most for `grace`; then sign what was recorded. To be called once."""
        await self._server.stop(grace)
        _log.info(events.SERVER_STOPPED)
        patience_s = None if self._thread is None else LEDGER_PATIENCE.total_seconds()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._heads.sign(self._ledger)
        if self._thread is not None:
            self._thread.close()

    def use_lists(self, lists: ListsFile) -> None:
        """Revoke by these from now on."""
        self._live_trust.take(lists)

    def on_new_engine(self) -> None:
        """Follow another authority: to be called after each change."""
        self._serving.look()
        self._live_trust.look()
        self._tell_authorities()

    def checks(self) -> Mapping[str, str | None]:
        """Readiness: each thing that issuing needs, with None or what is wrong with it in words."""
        return {
            **self._supervisor.problems(),
            "listening": None if self._is_listening else "not listening yet",
            **self._readiness.checks(),
            "serving certificate": _ended(self._serving.served.svid.not_after) if self._is_listening else None,
            "ledger": self._commits.problem,
            **({"jwt keys": _keys_problem(self._jwks)} if self._jwks else {}),
        }

    def degraded(self) -> Mapping[str, str | None]:
        """What is not as it should be while issuing goes on."""
        found = {**self._readiness.degraded(), "trust": self._live_trust.problem()}
        return {**found, "policy": self._policy.problem} if self._policy else found

    def _engine(self) -> Engine:
        return self._live.current

    def _bundle(self) -> Bundle:
        return self._live.current.issuer.bundle

    def _crls(self) -> tuple[CRL, ...]:
        return self._live_trust.crls

    def _authenticators(self, ledger: SQLLedger) -> list[Authenticator]:
        """In the order in which they are tried: cheapest first."""
        found: list[Authenticator] = [
            CertificateAuthenticator(self._bundle, self._crls), JoinTokenAuthenticator(ledger, self._thread)
        ]  # fmt: skip
        settings = self._settings
        if self._jwks is not None and settings.jwt_issuer is not None:
            trust_domain = self._live.current.policy.trust_domain
            rules = JWTRules(settings.jwt_issuer, settings.jwt_audience, trust_domain, settings.clock_skew)
            found.append(JWTAuthenticator(rules, self._jwks))
        return found

    async def _begin_jwks(self, jwks: JwksSource) -> None:
        with suppress(Unavailable):  # an issuer that is away now may come; one that is configured wrongly may not
            await jwks.load()
        self._supervisor.start("jwt keys", jwks.run())

    async def _keep_health(self) -> None:
        """The gRPC health service and metrics say what readiness says."""
        while True:
            self._readiness.look()
            checks = self.checks()
            await self._server.tell_checks(checks)
            self.metrics.tell_checks({**checks, **self.degraded()})
            await asyncio.sleep(HEALTH_EVERY.total_seconds())

    def _tell_authorities(self) -> None:
        self.metrics.authority_not_after.clear()
        issuer = self._engine().issuer
        for kind, certificates in (("intermediate", issuer.intermediates), ("root", (issuer.root,))):
            for certificate in certificates:
                moment = certificate.not_valid_after_utc.timestamp()
                self.metrics.authority_not_after.labels(kind, subject_key_id(certificate)).set(moment)

    def _serving_not_after(self) -> float:
        return self._serving.served.svid.not_after.timestamp()

    def _observe_commit(self, entries: int, seconds: float) -> None:
        self.metrics.ledger_entries.inc(entries)
        self.metrics.ledger_commit_duration.observe(seconds)


class _Alone:
    """The service as the only one in its process: with an admin listener, signals, and files that it follows."""

    def __init__(
        self,
        settings: ServeSettings,
        service: Service,
        live: LiveEngine,
        policy: LivePolicy | None,
        *,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._service = service
        self._live = live
        self._policy = policy
        self._supervisor = supervisor
        self._notifier = Notifier.of_environment()
        self._asked = asyncio.Event()
        admin = settings.admin
        self._admin = AdminServer(
            admin.bind_host,
            admin.port,
            checks=service.checks,
            metrics=service.metrics,
            degraded=service.degraded,
            documents={TRUST_PAGE: lambda: trust_page(service.trust)},
        )

    async def run(self) -> None:
        """From the first listener to the last, with the wait for the end in between."""
        grace = timedelta(0)  # for whatever goes wrong before all is up
        try:
            await self._start()
            await self._supervisor.stop_requested.wait()
            grace = self._settings.shutdown_grace
        finally:
            self._notifier.stopping()
            await self._service.stop(grace)
            await self._admin.stop()

    async def _start(self) -> None:
        if self._policy is not None:
            await self._policy.load()
        await self._admin.start()
        await self._service.start()
        self._supervisor.start("authority files", self._live.run(self._service.on_new_engine))
        if self._policy is not None:
            self._supervisor.start("policy file", self._policy.run())
        self._supervisor.start("reloading", self._reload_when_asked())
        self._supervisor.start("watchdog", self._notifier.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        admin = str(Address(self._settings.admin.host, self._admin.port))
        _log.info(events.SERVER_STARTED, **self._service.addresses, admin=admin)
        self._notifier.ready(f"listening at {self._service.addresses['listen']}")

    async def _reload_when_asked(self) -> None:
        """SIGHUP: look at all files at once."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._notifier.reloading()
            await self._live.reload(self._service.on_new_engine)
            if self._policy is not None:
                await self._policy.reload(was_asked=True)
            self._notifier.ready()


def _ended(moment: datetime) -> str | None:
    return f"it ended at {moment:%FT%TZ}" if utcnow() >= moment else None


def _keys_problem(jwks: JwksSource) -> str | None:
    """Keys that were good once go on to be used; only their absence is a problem."""
    return None if jwks.has_keys else jwks.problem
