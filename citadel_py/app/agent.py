"""`agent`: certificates kept fresh and served to proxies. Wired, started and ended in order here."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from datetime import timedelta
from typing import Final

from citadel_py import __version__
from citadel_py.admin.http import AdminServer
from citadel_py.agent.batch_client import MAX_OPEN
from citadel_py.agent.ca_client import CAClient
from citadel_py.app.agent_source import NodeSource, Source, new_source
from citadel_py.app.agent_trust import AgentTrust
from citadel_py.app.authority import read_passphrase
from citadel_py.app.federation import Federation
from citadel_py.app.notify import Notifier
from citadel_py.app.outputs import open_files
from citadel_py.app.runtime import Supervisor, uniform, utcnow
from citadel_py.app.served_socket import Entrance, ServedSocket
from citadel_py.app.standings import Standings
from citadel_py.app.svid_reports import SVIDReports
from citadel_py.app.trust_following import TrustFollowing
from citadel_py.app.trust_reports import TrustReports
from citadel_py.config import Address, AgentSettings
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.trust import Trust
from citadel_py.obs import events
from citadel_py.obs.logging import configure, get_logger
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.rpc import RpcInterceptor
from citadel_py.rotator.judgement import is_valid
from citadel_py.rotator.renewer import MAX_ATTEMPTS_AT_ONCE, Identity, Renewer, Report
from citadel_py.sds.evidence import Evidence, document
from citadel_py.store.file_set import FileSet
from citadel_py.store.files import lock_file, make_private_dir
from citadel_py.store.svids import SVIDFiles

SVIDS: Final = "svids"  # below the directory of --state
STATUS_PAGE: Final = "/status"
PROXIES_PAGE: Final = "/proxies"

_GRACE: Final = timedelta(seconds=2)  # streams end at once: this is for those who do not listen

_log = get_logger()


async def agent(settings: AgentSettings) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises CitadelError where it cannot begin, and the error of a task that died. A CA that is away
    is no reason not to begin.
    """
    configure(settings.log_format, settings.log_level)
    _log.info(events.PROCESS_STARTED, version=__version__)
    entrances = [Entrance.of(each) for each in settings.served]
    await asyncio.to_thread(make_private_dir, settings.state)
    with lock_file(settings.state), _doors(entrances) as doors:
        store = await asyncio.to_thread(_open_store, settings)
        async with (
            aclosing(await new_source(settings)) as source,
            aclosing(_Agent(settings, source, store, doors)) as parts,
            parts.supervisor,
        ):
            await parts.run()
    _log.info(events.PROCESS_STOPPED)


class _Agent:
    """The parts, from the moment at which the state directory is ours."""

    def __init__(
        self,
        settings: AgentSettings,
        source: Source,
        store: SVIDFiles,
        doors: Sequence[tuple[Entrance, FileSet | None]],
    ) -> None:
        self._settings = settings
        self._source = source
        self.supervisor = Supervisor()
        self._notifier = Notifier.of_environment()
        self._metrics = AgentMetrics()
        interceptors = [RpcInterceptor(self._metrics, uniform=uniform)]
        self._trust_reports = TrustReports(Evidence(time.monotonic))
        self._sockets = [
            ServedSocket(entrance, files, self._metrics, reports=self._trust_reports, interceptors=interceptors)
            for entrance, files in doors
        ]
        self._serving = _by_identity(self._sockets)
        self._federation = Federation(settings.federated, self._publish_trust)
        self._trust = AgentTrust(self._federation, utcnow)
        self._identities = settings.identities
        paths = {id: [each.path for each in sockets] for id, sockets in self._serving.items()}
        self._standings = Standings(self._identities, paths, self._metrics, utcnow)
        self._reports = SVIDReports(self._metrics)
        self._following: TrustFollowing | None = None
        self._node = self._node_source(source)
        self._renewer = Renewer(
            self._node or source,
            store,
            publish=self._publish,
            report=self._report,
            now=utcnow,
            uniform=uniform,
            policy=settings.renewal,
            attempts_at_once=MAX_OPEN if self._node else MAX_ATTEMPTS_AT_ONCE,
        )
        self._metrics.svid_renew_at.set_function(self._next_at)
        self._following = self._trust_following(source)
        self._admin = self._new_admin(settings.admin) if settings.admin else None

    async def run(self) -> None:
        """From the first listener to the last, with the wait for the end in between."""
        if self._admin:
            await self._admin.start()
        try:
            await self._start()
            await self.supervisor.stop_requested.wait()
        finally:
            self._notifier.stopping()
            grace = min(_GRACE, self._settings.shutdown_grace)
            await asyncio.gather(*(socket.stop(grace) for socket in self._sockets))
            if self._admin:
                await self._admin.stop()
        _log.info(events.SERVER_STOPPED)

    async def aclose(self) -> None:
        """Hang up, when nobody asks any more."""
        if self._node:
            await self._node.aclose()

    def take_trust(self, trust: Trust) -> None:
        """This verifies our own trust domain from now on. Proxies get it, and nothing is renewed for it."""
        if self._trust.replace(trust):
            self._publish_trust()

    def checks(self) -> Mapping[str, str | None]:
        """Readiness: each thing that proxies need, with None or what is wrong with it in words."""
        return {
            **self.supervisor.problems(),
            "sds": self._problem_of_sockets(lambda each: None if each.is_listening else "not listening yet"),
            "svid": self._standings.problem(),
            **self._federation.checks(),
            **({"out": self._problem_of_sockets(lambda each: each.problem_of_files)} if self._has_files() else {}),
        }

    def degraded(self) -> Mapping[str, str | None]:
        """What is not as it should be while proxies are served."""
        trust = {"trust": self._following.problem} if self._following else {}
        return {"identities": self._standings.degraded(), **trust}

    async def _start(self) -> None:
        """What was saved is served first; then the source is asked, if only to replace it later."""
        settings = self._settings
        await self._federation.load()
        await self._renewer.add(*(self._identity(id) for id in self._identities))
        await self._restore_trust()
        await self._ask_after_what_was_saved()
        for socket in self._sockets:
            await socket.start(self.supervisor)
        self.supervisor.start("renewer", self._renewer.run())
        self.supervisor.start("watchdog", self._notifier.run())
        if settings.federated:
            self.supervisor.start("federation", self._federation.run())
        self._trust.is_live = True
        if self._following:
            self._following.start(self.supervisor)
        self._tell_started()

    async def _ask_after_what_was_saved(self) -> None:
        """Where nothing of it is of use, a source that cannot work is told at once."""
        found = [held for id in self._identities if (held := self._renewer.held(id)) and is_valid(held, utcnow())]
        if not found:
            await self._source.check()
        by_bundle = {held.bundle.content_hash: held for held in found}
        outdated = {name for name, held in by_bundle.items() if not await self._source.is_current(held)}
        for held in found:
            if held.bundle.content_hash in outdated:
                self._renewer.hurry(held.svid.id)

    async def _restore_trust(self) -> None:
        kept = await self._following.load() if self._following else None
        if kept and self._trust.restore(*kept):
            self._publish_trust()

    def _tell_started(self) -> None:
        settings = self._settings
        admin = str(Address(settings.admin.host, self._admin.port)) if settings.admin and self._admin else None
        one = {"spiffe_id": str(self._identities[0]), "sds": self._sockets[0].path}
        many = {"identities": len(self._identities), "sockets": len(self._sockets)}
        _log.info(events.SERVER_STARTED, **(many if settings.sockets else one), admin=admin)
        self._notifier.ready()

    def _node_source(self, source: Source) -> NodeSource | None:
        node = self._settings.node_id
        return NodeSource(source, node, self._held) if node and isinstance(source, CAClient) else None

    def _trust_following(self, source: Source) -> TrustFollowing | None:
        """Where there is a CA service to follow."""
        if not isinstance(source, CAClient):
            return None
        return TrustFollowing(
            self._settings,
            source,
            self._trust_reports,
            held=self._held,
            take=self.take_trust,
            hurry=self._renewer.hurry,
            metrics=self._metrics,
        )

    def _held(self, id: SpiffeID) -> HeldSVID | None:
        return self._renewer.held(id)

    def _identity(self, id: SpiffeID) -> Identity:
        node = self._settings.node_id
        return Identity(id, self._settings.ttl, voucher=node if node != id else None)

    def _publish(self, fresh: Sequence[HeldSVID]) -> None:
        is_told = self._following is not None and self._following.is_told
        is_other_trust = self._trust.learn(fresh, is_told=is_told)
        new: dict[ServedSocket, list[HeldSVID]] = defaultdict(list)
        for held in fresh:
            for socket in self._serving.get(held.svid.id, ()):
                new[socket].append(held)
        self._publish_to(self._sockets if is_other_trust else new, new)

    def _publish_trust(self) -> None:
        """What there is to trust has changed."""
        self._publish_to(self._sockets, {})

    def _publish_to(self, sockets: Iterable[ServedSocket], new: Mapping[ServedSocket, Sequence[HeldSVID]]) -> None:
        if trusted := self._trust.current:
            for socket in sockets:
                socket.publish(new.get(socket, ()), trusted)

    def _report(self, report: Report) -> None:
        self._standings(report)
        self._reports(report)

    def _problem_of_sockets(self, problem_of: Callable[[ServedSocket], str | None]) -> str | None:
        """Of the only socket what is wrong with it, of many how many and the first."""
        problems = [(each, problem) for each in self._sockets if (problem := problem_of(each))]
        if not problems or len(self._sockets) == 1:
            return problems[0][1] if problems else None
        socket, problem = problems[0]
        return f"{len(problems)} of {len(self._sockets)}, the first of them {socket.path}: {problem}"

    def _has_files(self) -> bool:
        return any(each.out for each in self._settings.served)

    def _new_admin(self, address: Address) -> AdminServer:
        return AdminServer(
            address.bind_host,
            address.port,
            checks=self.checks,
            degraded=self.degraded,
            metrics=self._metrics,
            documents={
                STATUS_PAGE: self._standings.document,
                PROXIES_PAGE: lambda: document(self._trust_reports.evidence),
            },
        )

    def _next_at(self) -> float:
        next_at = self._renewer.next_at
        return next_at.timestamp() if next_at else math.nan


@contextmanager
def _doors(entrances: Sequence[Entrance]) -> Iterator[list[tuple[Entrance, FileSet | None]]]:
    """Each with its directory of files, if it has one, which is ours alone within the block."""
    with ExitStack() as stack:
        yield [(each, stack.enter_context(open_files(each.settings))) for each in entrances]


def _by_identity(sockets: Sequence[ServedSocket]) -> dict[SpiffeID, list[ServedSocket]]:
    found: dict[SpiffeID, list[ServedSocket]] = defaultdict(list)
    for socket in sockets:
        for id in socket.identities:
            found[id].append(socket)
    return found


def _open_store(settings: AgentSettings) -> SVIDFiles:
    passphrase = read_passphrase(settings.state_passphrase_file)
    return SVIDFiles(settings.state / SVIDS, passphrase, report=_tell_set_aside)


def _tell_set_aside(message: str) -> None:
    _log.error(events.SVID_SET_ASIDE, error=message)
