"""`serve`: the parts of the certificate service, wired, started and ended in order. It decides nothing itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from citadel_py.admin.http import AdminServer
from citadel_py.app.authority import AuthorityFiles, LiveEngine, read_passphrase
from citadel_py.app.ledger_heads import LedgerHeads
from citadel_py.app.policy import LivePolicy
from citadel_py.app.runtime import Supervisor, uniform, utcnow
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
from citadel_py.ca.server import IN_FLIGHT, CAServer
from citadel_py.ca.service import CertificateService
from citadel_py.ca.serving import ServerNames, ServingCertificate
from citadel_py.config import Address, ServeSettings
from citadel_py.core.bundle import Bundle
from citadel_py.core.csr import CsrPolicy
from citadel_py.core.engine import Engine
from citadel_py.core.errors import Unavailable
from citadel_py.core.profile import subject_key_id
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
    """Run the service until SIGTERM or SIGINT.

    Raises CitadelError where it cannot begin, and the error of a task that died.
    """
    configure(settings.log_format, settings.log_level)
    live = LiveEngine(await _files(settings))
    await live.load()
    heads = LedgerHeads(lambda: live.current)
    place = settings.ledger or settings.dir / authority_dir.LEDGER
    with SQLLedger.open(place, writer=_writer(settings), busy_timeout=BUSY_TIMEOUT, seal=heads.seal) as ledger:
        async with Supervisor() as supervisor:
            await _Service(settings, live, ledger=ledger, heads=heads, supervisor=supervisor).run()
    _log.info(events.PROCESS_STOPPED)


def _writer(settings: ServeSettings) -> str:
    """The chain of this service; on a shared ledger each replica has its own, and waits for no other."""
    return f"{WRITER}@{os.uname().nodename}" if settings.ledger else WRITER


async def _files(settings: ServeSettings) -> AuthorityFiles:
    return AuthorityFiles(
        directory=settings.dir,
        passphrase=await asyncio.to_thread(read_passphrase, settings.passphrase_file),
        limits=settings.ttl_limits,
        csr_policy=CsrPolicy(allow_ed25519=settings.allow_ed25519),
        relax_names=settings.relax_names,
        now=utcnow,
    )


class _Service:
    """The parts, from the moment at which authority and ledger are there."""

    def __init__(
        self,
        settings: ServeSettings,
        live: LiveEngine,
        *,
        ledger: SQLLedger,
        heads: LedgerHeads,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._heads = heads
        self._metrics = CAMetrics()
        self._live = live
        self._supervisor = supervisor
        self._is_listening = False
        self._policy = self._live_policy(settings.policy) if settings.policy else None
        self._jwks = jwks_source(settings.jwt_jwks) if settings.jwt_jwks else None
        self._commits = GroupCommit(ledger, observe=self._observe_commit)
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
            Gate(settings.admission, now=utcnow, metrics=self._metrics),
            now=utcnow,
            uniform=uniform,
            metrics=self._metrics,
            renewal=settings.renewal,
        )
        service = CertificateService(issuing, in_flight)
        issuance = IssuanceService(issuing, in_flight, uniform=uniform)
        self._server = CAServer(service, issuance, self._serving, in_flight, metrics=self._metrics, uniform=uniform)
        admin = settings.admin
        self._admin = AdminServer(
            admin.bind_host, admin.port, checks=self.checks, metrics=self._metrics, degraded=self.degraded
        )

    async def run(self) -> None:
        """From the first listener to the last, with the wait for the end in between."""
        grace = timedelta(0)  # for whatever goes wrong before all is up
        try:
            await self._start()
            await self._supervisor.stop_requested.wait()
            grace = self._settings.shutdown_grace
        finally:
            await self._server.stop(grace)
            _log.info(events.SERVER_STOPPED)
            await self._heads.sign(self._ledger)
            await self._admin.stop()

    def checks(self) -> Mapping[str, str | None]:
        """Readiness: each thing that issuing needs, with None or what is wrong with it in words."""
        return {
            **self._supervisor.problems(),
            "listening": None if self._is_listening else "not listening yet",
            "authority": _ended(self._engine().issuer.not_after),
            "serving certificate": _ended(self._serving.served.svid.not_after) if self._is_listening else None,
            "ledger": self._commits.problem,
            **({"jwt keys": _keys_problem(self._jwks)} if self._jwks else {}),
        }

    def degraded(self) -> Mapping[str, str | None]:
        """What is not as it should be while issuing goes on."""
        return {"policy": self._policy.problem} if self._policy else {}

    def _live_policy(self, path: Path) -> LivePolicy:
        return LivePolicy(
            path,
            self._live.use_rules,
            limits=self._settings.ttl_limits,
            trust_domain=self._engine().policy.trust_domain,
            metrics=self._metrics,
        )

    def _engine(self) -> Engine:
        return self._live.current

    def _bundle(self) -> Bundle:
        return self._live.current.issuer.bundle

    def _authenticators(self, ledger: SQLLedger) -> list[Authenticator]:
        """In the order in which they are tried: cheapest first."""
        found: list[Authenticator] = [CertificateAuthenticator(self._bundle), JoinTokenAuthenticator(ledger)]
        settings = self._settings
        if self._jwks is not None and settings.jwt_issuer is not None:
            trust_domain = self._live.current.policy.trust_domain
            rules = JWTRules(settings.jwt_issuer, settings.jwt_audience, trust_domain, settings.clock_skew)
            found.append(JWTAuthenticator(rules, self._jwks))
        return found

    async def _start(self) -> None:
        if self._policy is not None:
            await self._policy.load()
        await self._admin.start()
        await self._serving.renew()
        self._metrics.serving_certificate_not_after.set_function(self._serving_not_after)
        self._tell_authorities()
        if self._jwks is not None:
            await self._begin_jwks(self._jwks)
        self._supervisor.start("serving certificate", self._serving.run())
        self._supervisor.start("ledger heads", self._heads.run(self._ledger))
        self._supervisor.start("authority files", self._live.run(self._on_new_engine))
        if self._policy is not None:
            self._supervisor.start("policy file", self._policy.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._look)
        listen = self._settings.listen
        listen_mtls = self._settings.listen_mtls or Address(listen.host, 0)
        await self._server.start(str(listen), str(listen_mtls))
        self._is_listening = True
        self._supervisor.start("health", self._keep_health())
        _log.info(
            events.SERVER_STARTED,
            listen=self._server.address,
            listen_mtls=self._server.mtls_address,
            admin=str(Address(self._settings.admin.host, self._admin.port)),
        )

    async def _begin_jwks(self, jwks: JwksSource) -> None:
        with suppress(Unavailable):  # an issuer that is away now may come; one that is configured wrongly may not
            await jwks.load()
        self._supervisor.start("jwt keys", jwks.run())

    async def _keep_health(self) -> None:
        """The gRPC health service says what readiness says."""
        while True:
            await self._server.set_serving(serving=not any(self.checks().values()))
            await asyncio.sleep(HEALTH_EVERY.total_seconds())

    def _look(self) -> None:
        """SIGHUP: look at all files at once."""
        self._live.look()
        if self._policy is not None:
            self._policy.look()

    def _on_new_engine(self) -> None:
        self._serving.look()
        self._tell_authorities()

    def _tell_authorities(self) -> None:
        self._metrics.authority_not_after.clear()
        issuer = self._engine().issuer
        for kind, certificates in (("intermediate", issuer.intermediates), ("root", (issuer.root,))):
            for certificate in certificates:
                moment = certificate.not_valid_after_utc.timestamp()
                self._metrics.authority_not_after.labels(kind, subject_key_id(certificate)).set(moment)

    def _serving_not_after(self) -> float:
        return self._serving.served.svid.not_after.timestamp()

    def _observe_commit(self, entries: int, seconds: float) -> None:
        self._metrics.ledger_entries.inc(entries)
        self._metrics.ledger_commit_duration.observe(seconds)


def _ended(moment: datetime) -> str | None:
    return f"it ended at {moment:%FT%TZ}" if utcnow() >= moment else None


def _keys_problem(jwks: JwksSource) -> str | None:
    """Keys that were good once go on to be used; only their absence is a problem."""
    return None if jwks.has_keys else jwks.problem
