"""One stream of xDS, of either form: requests go into its state, and what the state says is sent.

It decides nothing about secrets: that is stream.py's and delta.py's. It reads, writes, logs and counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import grpc

from citadel_py.core.errors import BadInput, CitadelError
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.obs.rpc import add_fields
from citadel_py.sds.delta import DeltaPush
from citadel_py.sds.encoding import SECRET_TYPE_URL, Resource
from citadel_py.sds.evidence import MAX_NAMES, Evidence, ProxyState
from citadel_py.sds.holdings import Acknowledged, Answer, Available, Rejected
from citadel_py.sds.hub import Hub
from citadel_py.sds.received import Received, RequestT
from citadel_py.sds.stream import Push

_MAX_SHOWN_NAMES = 10
_MAX_SHOWN_NAME = 200  # characters
_MAX_TELLINGS = 20  # of what is withheld or ignored on one stream: a client must not be able to fill the log
_MAX_REMEMBERED = 16  # answers

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Told: TypeAlias = tuple[type[Answer], str, tuple[str, ...]]
Asked_contra = TypeVar("Asked_contra", contravariant=True)

_log = get_logger()


class State(Protocol[Asked_contra]):
    """What stream.py and delta.py have in common."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def held(self) -> Available: ...

    @property
    def refused(self) -> Available: ...

    def withheld(self, available: Available) -> tuple[str, ...]: ...

    def receive(self, request: Asked_contra, available: Available) -> Answer | None: ...

    def next_push(self, available: Available) -> Push | DeltaPush | None: ...


def check_type(type_url: str) -> None:
    """Raises BadInput for another type than that of secrets; where only they are served none means them."""
    if type_url not in ("", SECRET_TYPE_URL):
        raise BadInput(f"only secrets are served here, not {type_url[:100]!a}", rule="resource_type_unknown")


@dataclass(frozen=True, slots=True)
class Offered:
    """What a stream has to do with: the secrets, who is told of answers, and where all that is served."""

    hub: Hub
    metrics: AgentMetrics
    evidence: Evidence
    via: str = ""


class Conversation(Generic[RequestT]):
    """A task reads requests into the state, the one of `run` sends what the state says.

    `peer` is the ID that the client has proven, empty where only the socket says who it is.
    `is_aggregated` streams carry all types of resources. Only secrets are served; the others get
    silence, since an error would end the stream, and the secrets on it.
    """

    __slots__ = (  # thousands of these are open at once
        "_context",
        "_evidence",
        "_hub",
        "_ignored_types",
        "_is_aggregated",
        "_is_open",
        "_is_over",
        "_metrics",
        "_node",
        "_peer",
        "_refused",
        "_state",
        "_tellings",
        "_told",
        "_via",
        "_wake",
        "_withheld",
    )

    def __init__(
        self,
        offered: Offered,
        context: Context,
        state: State[RequestT],
        *,
        peer: str = "",
        is_aggregated: bool = False,
    ) -> None:
        self._hub, self._metrics = offered.hub, offered.metrics
        self._evidence, self._via, self._peer = offered.evidence, offered.via, peer
        self._context = context
        self._state: State[RequestT] = state
        self._is_aggregated = is_aggregated
        self._wake = asyncio.Event()
        self._node = ""
        self._withheld: tuple[str, ...] = ()
        self._ignored_types: tuple[str, ...] = ()
        self._told: tuple[_Told, ...] = ()
        self._tellings = 0
        self._is_open = False
        self._is_over = False
        self._refused: CitadelError | None = None

    def states(self) -> Iterator[ProxyState]:
        """What this client has of each name that it wants."""
        held, refused = self._state.held, self._state.refused
        for name in self._state.names[:MAX_NAMES]:
            yield ProxyState(
                self._via, self._node, self._peer, name,
                acknowledged=_version(held.get(name)),
                rejected=_version(refused.get(name)),
                withheld=self._hub.why_withheld(name),
            )  # fmt: skip

    async def run(self) -> None:
        """Ends when the client does, or when the hub closes. Raises BadInput for what no client asks."""
        with (
            self._hub.listen() as self._wake,
            self._evidence.follow(self),
            self._metrics.sds_streams.track_inprogress(),
        ):
            try:
                async with asyncio.TaskGroup() as tasks:
                    reading = tasks.create_task(self._read())
                    await self._send()
                    reading.cancel()
            finally:
                _log.debug(events.SDS_STREAM_CLOSED, node=self._node)
        if self._refused:
            raise self._refused

    async def _read(self) -> None:
        try:
            while self._take(await self._context.read()):
                self._wake.set()
        except CitadelError as error:  # told to the client by whoever runs this stream, not to a group of tasks
            self._refused = error
        finally:
            self._is_over = True
            self._wake.set()

    async def _send(self) -> None:
        while not (self._is_over or self._hub.is_closed):
            if push := self._state.next_push(self._hub.snapshot):
                await self._context.write(self._hub.response(push))
                self._metrics.sds_pushes.inc()
                _log.debug(events.SDS_PUSHED, node=self._node, version=push.version, names=_shown(push.names))
            else:
                await self._wake.wait()
                self._wake.clear()

    def _take(self, received: Received[RequestT] | object) -> bool:
        """False at the end. Nothing of a request is kept but what the state keeps: a refusal can hold a key."""
        if not isinstance(received, Received):
            return False
        is_first, self._is_open = not self._is_open, True
        if is_first:
            self._node = received.node
        answer = self._answer_of(received)
        self._record(answer)
        if is_first:
            _log.info(events.SDS_STREAM_OPENED, node=self._node, names=_shown(self._state.names))
        add_fields(node=self._node, names=_shown(self._state.names))
        withheld, before = self._state.withheld(self._hub.snapshot), self._withheld
        self._tell_withheld(withheld)
        if is_first or answer or withheld != before:  # who talks without saying anything wakes nobody
            self._evidence.changed()
        return True

    def _answer_of(self, received: Received[RequestT]) -> Answer | None:
        if self._is_aggregated and received.type_url != SECRET_TYPE_URL:
            self._tell_ignored(received.type_url)
            return None
        check_type(received.type_url)
        return self._state.receive(received.request, self._hub.snapshot)

    def _record(self, answer: Answer | None) -> None:
        match answer:
            case Acknowledged(version, names):
                self._metrics.sds_acks.inc()
                tell = _log.info if self._is_news(answer) else _log.debug
                tell(events.SDS_ACKED, node=self._node, version=version, names=_shown(names))
            case Rejected(version, names, reason):
                self._metrics.sds_nacks.inc()
                tell = _log.error if self._is_news(answer) else _log.debug
                tell(events.SDS_NACKED, node=self._node, version=version, names=_shown(names), error=reason)

    def _is_news(self, answer: Answer) -> bool:
        """False for what was told lately: who asks again and again for the same must not fill the log."""
        told = (type(answer), answer.version, answer.names)
        is_news = told not in self._told
        if is_news:
            self._told = (*self._told, told)[-_MAX_REMEMBERED:]
        return is_news

    def _tell_withheld(self, names: tuple[str, ...]) -> None:
        if names and names != self._withheld and self._may_tell():
            known = _shown(tuple(self._hub.snapshot))
            reasons = tuple(dict.fromkeys(map(self._hub.why_withheld, names)))
            _log.warning(events.SDS_WITHHELD, node=self._node, names=_shown(names), reasons=reasons, known=known)
        self._withheld = names

    def _tell_ignored(self, type_url: str) -> None:
        if type_url not in self._ignored_types and self._may_tell():
            self._ignored_types = (*self._ignored_types, type_url)
            _log.warning(events.SDS_TYPE_IGNORED, node=self._node, type_url=ascii(type_url[:_MAX_SHOWN_NAME])[1:-1])

    def _may_tell(self) -> bool:
        self._tellings += 1
        return self._tellings <= _MAX_TELLINGS


def _version(resource: Resource | None) -> str | None:
    return resource.version if resource else None


def _shown(names: tuple[str, ...]) -> tuple[str, ...]:
    """Bounded, for a log line."""
    shown = tuple(name[:_MAX_SHOWN_NAME] for name in names[:_MAX_SHOWN_NAMES])
    more = len(names) - len(shown)
    return (*shown, f"and {more} more") if more else shown
