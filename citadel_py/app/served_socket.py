"""One socket of an agent with everything behind it: its secrets, its identities for programs, its files.

It is told of SVIDs and of what there is to trust, and knows nothing of where they come from.
"""

from __future__ import annotations

import grp
import itertools
import pwd
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import grpc

from citadel_py.app.outputs import new_outputs
from citadel_py.app.runtime import Supervisor
from citadel_py.app.served_tcp import ServedTCP
from citadel_py.app.trust_reports import TrustReports
from citadel_py.config import Address, SocketSettings
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.trust import Trust
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.sds.hub import Hub
from citadel_py.sds.names import certificates_of, trust_of
from citadel_py.sds.server import SecretServer
from citadel_py.sds.socket import Access, UnixAddress
from citadel_py.sds.workload import Workload
from citadel_py.store.file_set import FileSet

_AS_IT_IS: Final = -1  # for chown(2)


@dataclass(frozen=True, slots=True)
class Trusted:
    """What there is to trust at a moment: in our own trust domain, and in others."""

    own: Trust
    federated: tuple[Bundle, ...] = ()


@dataclass(frozen=True, slots=True)
class Entrance:
    """A socket as it was declared, with its address read and its accounts found."""

    settings: SocketSettings
    address: UnixAddress
    access: Access

    @classmethod
    def of(cls, settings: SocketSettings) -> Entrance:
        """Raises InvalidConfiguration (`account_unknown`, `socket_address`, `socket_path_too_long`)."""
        uid = _number(settings.owner, "user", lambda name: pwd.getpwnam(name).pw_uid)
        gid = _number(settings.group, "group", lambda name: grp.getgrnam(name).gr_gid)
        return cls(settings, UnixAddress.parse(settings.path), Access(settings.mode, uid, gid))


class ServedSocket:
    """Make it, `publish` to it, `start` it, and `stop` it once."""

    def __init__(
        self,
        entrance: Entrance,
        files: FileSet | None,
        metrics: AgentMetrics,
        *,
        reports: TrustReports,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self._reports = reports
        self._settings = settings = entrance.settings
        self._hub = Hub()
        self._workload = Workload(settings.identities)
        self._outputs = new_outputs(settings, files, metrics) if files else None
        self._server = SecretServer(
            entrance.address,
            self._hub,
            metrics,
            interceptors=interceptors,
            access=entrance.access,
            workload=self._workload,
            evidence=reports.evidence,
        )
        self._tcp = self._new_tcp(settings.listen, metrics, interceptors) if settings.listen else None
        self._held: dict[SpiffeID, HeldSVID] = {}
        self._trusted: Trusted | None = None

    @property
    def path(self) -> str:
        """As it was declared."""
        return self._settings.path

    @property
    def identities(self) -> tuple[SpiffeID, ...]:
        """Who is served here; the first one is `default`."""
        return self._settings.identities

    @property
    def is_listening(self) -> bool:
        return self._server.is_listening

    @property
    def tcp_address(self) -> str | None:
        """Where it listens for other machines, once it does."""
        return self._tcp.address if self._tcp and self._tcp.is_listening else None

    @property
    def problem_of_files(self) -> str | None:
        """What is wrong with the files of `out`, if there are any."""
        return self._outputs.problem if self._outputs else None

    async def start(self, supervisor: Supervisor) -> None:
        """Listen, and write files. Raises InvalidConfiguration, Unavailable (`socket_in_use`)."""
        await self._server.start()
        if self._tcp:
            supervisor.start(f"sds {self._settings.listen}", self._tcp.run())
        if self._outputs:
            supervisor.start(f"outputs {self._settings.out}", self._outputs.run())

    async def stop(self, grace: timedelta) -> None:
        """End all streams, then the servers."""
        if self._tcp:
            await self._tcp.stop(grace)
        await self._server.stop(grace)

    def publish(self, fresh: Iterable[HeldSVID], trusted: Trusted) -> None:
        """These SVIDs are new, and this is what there is to trust now; either may be as before."""
        bundle, before = trusted.own.bundle, self._trusted
        new = {each.svid.id: each for each in fresh}
        self._trusted = trusted
        self._held |= new
        self._publish_secrets(new.values(), trusted)
        is_other_bundle = before is None or before.own.bundle.content_hash != bundle.content_hash
        changed = self._held if is_other_bundle else new
        self._workload.replace((replace(each, bundle=bundle) for each in changed.values()), trusted.federated)
        first = self._held.get(self.identities[0])
        if self._outputs and first and (is_other_bundle or first.svid.id in new):
            self._outputs.replace(replace(first, bundle=bundle))

    def _publish_secrets(self, fresh: Iterable[HeldSVID], trusted: Trusted) -> None:
        """Bundles first: a peer's trust has to be there before what it shall trust."""
        own, first = trusted.own, self.identities[0]
        offer = trust_of(own.bundle, trusted.federated, self._settings.context, crls={own.trust_domain: own.crls})
        self._reports.served(offer.secrets, own)
        certificates = (certificates_of(each, is_default=each.svid.id == first) for each in fresh)
        secrets = (*offer.secrets, *itertools.chain.from_iterable(certificates))
        self._hub.explain(offer.withheld)
        self._hub.replace(secrets)
        if self._tcp:
            shown = self._held.get(first)
            self._tcp.publish(secrets, offer.withheld, shown and replace(shown, bundle=own.bundle))

    def _new_tcp(
        self, listen: Address, metrics: AgentMetrics, interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> ServedTCP:
        return ServedTCP(
            listen, self._settings.keys_to, metrics, evidence=self._reports.evidence, interceptors=interceptors
        )


def _number(account: int | str | None, kind: str, find: Callable[[str], int]) -> int:
    if account is None:
        return _AS_IT_IS
    if isinstance(account, int):
        return account
    try:
        return find(account)
    except KeyError:
        raise InvalidConfiguration(
            f"there is no {kind} {account[:100]!a} on this machine", rule="account_unknown"
        ) from None
