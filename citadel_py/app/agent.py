"""`agent`: one identity's certificate kept fresh and served to proxies. Wired, started and ended in order here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from citadel_py import __version__
from citadel_py.admin.http import AdminServer
from citadel_py.agent.ca_client import CAAddress, CAClient
from citadel_py.app.authority import AuthorityFiles, read_passphrase
from citadel_py.app.federation import Federation
from citadel_py.app.learned_port import LearnedPort
from citadel_py.app.local_source import LocalSource
from citadel_py.app.outputs import new_outputs, open_files
from citadel_py.app.runtime import Supervisor, uniform, utcnow
from citadel_py.app.svid_reports import SVIDReports
from citadel_py.config import Address, AgentSettings
from citadel_py.core.csr import CsrPolicy
from citadel_py.core.pem import MAX_PEM_BYTES
from citadel_py.core.policy import TTLLimits
from citadel_py.core.ports import CertificateSource, HeldSVID
from citadel_py.obs import events
from citadel_py.obs.logging import configure, get_logger
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.rpc import RpcInterceptor
from citadel_py.rotator.judgement import is_valid
from citadel_py.rotator.renewer import Identity, Renewer
from citadel_py.sds.hub import Hub
from citadel_py.sds.names import secrets_of
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import UnixAddress
from citadel_py.sds.workload import Workload
from citadel_py.store.file_set import FileSet
from citadel_py.store.files import lock_file, make_private_dir, read_bounded
from citadel_py.store.svids import SVIDFiles

# Below the directory of --state.
SVIDS: Final = "svids"
LEARNED: Final = "ca.json"

_MAX_TOKEN_BYTES: Final = 32 * 1024
_GRACE: Final = timedelta(seconds=2)  # streams end at once: this is for those who do not listen

_log = get_logger()


class Source(CertificateSource, Protocol):
    """Either of our sources."""

    async def check(self) -> None:
        """Raise CitadelError where what was configured cannot work, whoever is away."""
        ...

    async def is_current(self, held: HeldSVID) -> bool:
        """False where this source is known to have another bundle than the one that came with this SVID."""
        ...

    async def aclose(self) -> None:
        """Let go of connections and files."""
        ...


async def agent(settings: AgentSettings) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises CitadelError where it cannot begin, and the error of a task that died. A CA that is away
    is no reason not to begin.
    """
    configure(settings.log_format, settings.log_level)
    _log.info(events.PROCESS_STARTED, version=__version__)
    address = UnixAddress.parse(settings.sds)
    await asyncio.to_thread(make_private_dir, settings.state)
    with lock_file(settings.state), open_files(settings) as files:
        async with aclosing(await _source(settings)) as source, Supervisor() as supervisor:
            await _Agent(settings, source, address, supervisor=supervisor, files=files).run()
    _log.info(events.PROCESS_STOPPED)


class _Agent:
    """The parts, from the moment at which the state directory is ours."""

    def __init__(
        self,
        settings: AgentSettings,
        source: Source,
        address: UnixAddress,
        *,
        supervisor: Supervisor,
        files: FileSet | None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._supervisor = supervisor
        self._metrics = AgentMetrics()
        self._hub = Hub()
        self._workload = Workload()
        self._federation = Federation(settings.federated, self._publish_trust)
        self._outputs = new_outputs(settings, files, self._metrics) if files else None
        interceptor = RpcInterceptor(self._metrics, uniform=uniform)
        self._server = SecretServer(
            address,
            self._hub,
            self._metrics,
            interceptors=[interceptor],
            mode=settings.sds_mode,
            workload=self._workload,
        )
        self._renewer = Renewer(
            source,
            SVIDFiles(settings.state / SVIDS, report=_tell_set_aside),
            publish=self._publish,
            report=SVIDReports(self._metrics),
            now=utcnow,
            uniform=uniform,
            policy=settings.renewal,
        )
        self._metrics.svid_renew_at.set_function(self._next_at)
        self._admin = self._new_admin(settings.admin) if settings.admin else None

    async def run(self) -> None:
        """From the first listener to the last, with the wait for the end in between."""
        if self._admin:
            await self._admin.start()
        try:
            await self._start()
            await self._supervisor.stop_requested.wait()
        finally:
            await self._server.stop(min(_GRACE, self._settings.shutdown_grace))
            if self._admin:
                await self._admin.stop()
        _log.info(events.SERVER_STOPPED)

    def checks(self) -> Mapping[str, str | None]:
        """Readiness: each thing that proxies need, with None or what is wrong with it in words."""
        return {
            **self._supervisor.problems(),
            "sds": None if self._server.is_listening else "not listening yet",
            "svid": _problem_of(self._renewer.held(self._settings.id), utcnow()),
            **self._federation.checks(),
            **({"out": self._outputs.problem} if self._outputs else {}),
        }

    async def _start(self) -> None:
        """What was saved is served first; then the source is asked, if only to replace it later."""
        settings = self._settings
        await self._federation.load()
        await self._renewer.add(Identity(settings.id, settings.ttl))
        held = self._renewer.held(settings.id)
        if held is None or not is_valid(held, utcnow()):
            await self._source.check()
        elif not await self._source.is_current(held):
            self._renewer.hurry(settings.id)
        await self._server.start()
        self._supervisor.start("renewer", self._renewer.run())
        if settings.federated:
            self._supervisor.start("federation", self._federation.run())
        if self._outputs:
            self._supervisor.start("outputs", self._outputs.run())
        admin = str(Address(settings.admin.host, self._admin.port)) if settings.admin and self._admin else None
        _log.info(events.SERVER_STARTED, spiffe_id=str(settings.id), sds=settings.sds, admin=admin)

    def _publish(self, held: HeldSVID) -> None:
        self._serve(held)
        if self._outputs:
            self._outputs.replace(held)

    def _publish_trust(self) -> None:
        """Bundles of other trust domains have changed."""
        held = self._renewer.held(self._settings.id)
        if held:
            self._serve(held)

    def _serve(self, held: HeldSVID) -> None:
        has_validator = self._settings.root_validator == "spiffe"
        self._hub.replace(secrets_of(held, self._federation.bundles, has_validator=has_validator))
        self._workload.replace([held], self._federation.bundles)

    def _new_admin(self, address: Address) -> AdminServer:
        return AdminServer(address.bind_host, address.port, checks=self.checks, metrics=self._metrics)

    def _next_at(self) -> float:
        next_at = self._renewer.next_at
        return next_at.timestamp() if next_at else math.nan


async def _source(settings: AgentSettings) -> Source:
    if settings.ca_dir is not None:
        return LocalSource.of_directory(await _authority(settings, settings.ca_dir))
    if settings.ca is None or settings.ca_bundle is None:
        raise RuntimeError("the settings were not checked")
    mtls = str(settings.ca_mtls) if settings.ca_mtls else None
    port = LearnedPort(settings.state / LEARNED, str(settings.ca))
    token_file = settings.token_file
    return CAClient(
        CAAddress(settings.ca.host, settings.ca.port, mtls),
        read_roots=partial(read_bounded, settings.ca_bundle, MAX_PEM_BYTES),
        read_token=partial(read_bounded, token_file, _MAX_TOKEN_BYTES) if token_file else None,
        now=utcnow,
        learned_port=port.load(),
        remember_port=port.save,
    )


async def _authority(settings: AgentSettings, directory: Path) -> AuthorityFiles:
    return AuthorityFiles(
        directory=directory,
        passphrase=await asyncio.to_thread(read_passphrase, settings.passphrase_file),
        limits=TTLLimits(settings.ttl) if settings.ttl else TTLLimits(),
        csr_policy=CsrPolicy(),
        relax_names=False,
        now=utcnow,
    )


def _problem_of(held: HeldSVID | None, now: datetime) -> str | None:
    if held is None:
        return "there is none yet"
    if is_valid(held, now):
        return None
    begin, end = held.svid.not_before, held.svid.not_after
    return f"it ended at {end:%FT%TZ}" if now >= end else f"it begins at {begin:%FT%TZ}: was the clock set back?"


def _tell_set_aside(message: str) -> None:
    _log.error(events.SVID_SET_ASIDE, error=message)
