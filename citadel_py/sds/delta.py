"""State of one incremental stream of SDS (`DeltaSecrets`). No I/O: requests go in, what to send comes out.

The rules, beyond those of holdings.py:

* One response is unacknowledged at most; what changes meanwhile goes out together, afterwards.
* Subscriptions are differences, so they count whatever nonce comes with them: one that were dropped
  would be lost. Only the answer in a request depends on its nonce, which is that of the last response.
* Who opens a stream says by version what it holds, and that is not sent again. Whoever asks in mid-stream
  for a name that it has already, gets it again: it may have let go of it meanwhile (Envoy's
  `DeltaDiscoveryRequest.resource_names_subscribe`).
* A refused response is answered once with what was accepted last under its names.
* A name that is not known (yet) is withheld without a word and sent when it appears. One that the
  client holds and that is known no more is told as removed, once; what was never there is not: an
  agent that has only just started does not know that something was taken away.
* Secrets go only to who names them. An empty subscription subscribes to nothing, and `*` is a name
  like any other, which no secret has: the wildcard is for listeners and clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from citadel_py.sds.encoding import Resource
from citadel_py.sds.holdings import Acknowledged, Answer, Available, Holdings, check_bounds, rejected
from citadel_py.sds.stream import version_of


@dataclass(frozen=True, slots=True)
class DeltaRequest:
    """What a client says. `error` is the text of its refusal; None where it refuses nothing."""

    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeltaPush:
    """One response to send: what is new or changed, and the names that are gone."""

    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """Of the response as a whole: it is shown and logged, and nothing depends on it."""
        return version_of(self.resources)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(resource.name for resource in self.resources), *self.removed)


class DeltaStream:
    """The state of one stream. Feed every request to `receive`, then send what `next_push` says, if anything."""

    __slots__ = ("_asked_again", "_count", "_holdings", "_is_open", "_names", "_pending", "_to_restore")

    def __init__(self) -> None:
        self._names: dict[str, None] = {}  # a set that keeps its order
        self._is_open = False
        self._count = 0  # responses sent; the last one's nonce
        self._pending: DeltaPush | None = None
        self._holdings = Holdings()
        self._asked_again: set[str] = set()
        self._to_restore: tuple[Resource, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What the client wants."""
        return tuple(self._names)

    @property
    def held(self) -> Mapping[str, Resource]:
        """What the client has, as far as it has said."""
        return self._holdings.held

    @property
    def refused(self) -> Mapping[str, Resource]:
        """What it refused of what is current."""
        return self._holdings.refused

    def withheld(self, available: Available) -> tuple[str, ...]:
        """Wanted names that there is nothing to send for."""
        return tuple(name for name in self._names if name not in available)

    def receive(self, request: DeltaRequest, available: Available) -> Answer | None:
        """Take in a request; what it says about the last response, if it is an answer.

        Raises BadInput where it asks for more than any client does.
        """
        check_bounds(request.subscribe)
        answer = self._conclude(request) if request.nonce == self._nonce else None
        self._unsubscribe(request.unsubscribe)
        self._subscribe(request.subscribe)
        if not self._is_open:
            self._open(request.initial_versions, available)
        return answer

    def next_push(self, available: Available) -> DeltaPush | None:
        """The response to send now; None while there is nothing new or an answer is awaited."""
        if self._pending is not None:
            return None
        resources = self._restored(available) or self._changed(available)
        removed = tuple(name for name in self._holdings.held if name not in available)
        if not resources and not removed:
            return None
        self._count += 1
        self._asked_again -= {resource.name for resource in resources}
        self._pending = DeltaPush(self._nonce, resources, removed)
        return self._pending

    @property
    def _nonce(self) -> str:
        return str(self._count)

    def _open(self, versions: Mapping[str, str], available: Available) -> None:
        self._is_open = True
        self._asked_again.clear()
        wanted = [available[name] for name in self._names if name in available]
        self._holdings.accept([resource for resource in wanted if versions.get(resource.name) == resource.version])

    def _subscribe(self, names: Iterable[str]) -> None:
        self._names |= dict.fromkeys(names)
        check_bounds(self._names)
        self._asked_again.update(names)

    def _unsubscribe(self, names: Iterable[str]) -> None:
        for name in names:
            self._names.pop(name, None)
            self._asked_again.discard(name)
        self._holdings.keep_only(self._names)
        self._to_restore = self._wanted(self._to_restore)

    def _conclude(self, request: DeltaRequest) -> Answer | None:
        pending, self._pending = self._pending, None
        if pending is None:  # answered before
            return None
        for name in pending.removed:
            self._holdings.held.pop(name, None)
        if request.error is not None:
            self._refuse(pending)
            return rejected(pending.version, pending.names, request.error)
        self._holdings.accept(self._wanted(pending.resources))
        return Acknowledged(pending.version, pending.names)

    def _refuse(self, push: DeltaPush) -> None:
        held = self._holdings.held
        if self._holdings.refuse(push.resources):
            self._to_restore = tuple(held[resource.name] for resource in push.resources if resource.name in held)

    def _restored(self, available: Available) -> tuple[Resource, ...]:
        """What was accepted last, once after a refusal."""
        restored, self._to_restore = self._to_restore, ()
        return tuple(resource for resource in restored if resource.name in available)

    def _wanted(self, resources: Iterable[Resource]) -> tuple[Resource, ...]:
        return tuple(resource for resource in resources if resource.name in self._names)

    def _changed(self, available: Available) -> tuple[Resource, ...]:
        """What differs from what the client holds, and what it wants to have once more."""
        self._holdings.forget_outdated(self._names, available)
        best = (self._holdings.best(available[name]) for name in self._names if name in available)
        return tuple(each for each in best if each and not (self._holdings.holds(each) and self._is_known(each)))

    def _is_known(self, resource: Resource) -> bool:
        return resource.name not in self._asked_again
