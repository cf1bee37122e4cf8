"""State of one state-of-the-world stream of SDS. No I/O: requests go in, what to send comes out.

The rules, as real Envoys need them:

* One response is unacknowledged at most; what changes meanwhile goes out together, afterwards.
* A client holds what it acknowledged on this stream, or what it says it holds (by version) when it
  opens one; what it holds is not sent again.
* An empty nonce in mid-stream is a whole new subscription and answers nothing; any other nonce than
  that of the last response is stale, and such a request is ignored.
* A refused response is answered once with what was accepted last, since Envoy keeps the refused
  secret in places. A refused secret is not sent again until it changes. Where several had changed
  in a refused response, each of them is tried alone, so that one bad secret never holds up others.
* A name that is not known (yet) is withheld without a word and sent when it appears.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from citadel_py.core.errors import BadInput
from citadel_py.sds.encoding import Resource
from citadel_py.sds.refusals import redact_refusal

MAX_NAMES = 1000
MAX_NAME_BYTES = 2100  # a SPIFFE ID with room to spare

Available: TypeAlias = Mapping[str, Resource]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client says. `error` is the text of its refusal; None where it refuses nothing."""

    names: tuple[str, ...]
    version: str = ""
    nonce: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Push:
    """One response to send. It always holds everything that the client should have."""

    nonce: str
    version: str
    resources: tuple[Resource, ...]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The client took what was sent. For a name that Envoy does not know that proves nothing."""

    version: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The client refused what was sent. `reason` holds nothing secret and is short."""

    version: str
    names: tuple[str, ...]
    reason: str


Answer: TypeAlias = Acknowledged | Rejected


def version_of(resources: Iterable[Resource]) -> str:
    """One resource's own version, or a hash over those of several, whatever their order."""
    versions = sorted(resource.version for resource in resources)
    if len(versions) == 1:
        return versions[0]
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:32]


class Stream:
    """The state of one stream. Feed every request to `receive`, then send what `next_push` says, if anything."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] | None = None  # None until the first request
        self._count = 0  # responses sent; the last one's nonce
        self._pending: Push | None = None
        self._held: dict[str, Resource] = {}
        self._refused: dict[str, Resource] = {}
        self._suspects: list[Resource] = []  # were refused together, to be tried one by one
        self._must_restore = False

    @property
    def names(self) -> tuple[str, ...]:
        """What the client wants."""
        return self._names or ()

    def withheld(self, available: Available) -> tuple[str, ...]:
        """Wanted names that there is nothing to send for."""
        return tuple(name for name in self.names if name not in available)

    def receive(self, request: Request, available: Available) -> Answer | None:
        """Take in a request; what it says about the last response, if it is an answer.

        Raises BadInput where it asks for more than any client does.
        """
        _check_bounds(request.names)
        if self._names is None:
            self._open(request, available)
            return None
        if request.nonce and request.nonce != self._nonce:
            return None
        answer = self._conclude(request) if request.nonce else None
        self._subscribe(request.names)
        return answer

    def next_push(self, available: Available) -> Push | None:
        """The response to send now; None while there is nothing new or an answer is awaited."""
        if self._pending is not None:
            return None
        resources = self._restored() or self._changed(available)
        if not resources:
            return None
        self._count += 1
        self._pending = Push(self._nonce, version_of(resources), resources)
        return self._pending

    @property
    def _nonce(self) -> str:
        return str(self._count)

    def _open(self, request: Request, available: Available) -> None:
        self._subscribe(request.names)
        wanted = {name: available[name] for name in self.names if name in available}
        if wanted and request.version == version_of(wanted.values()):
            self._held = wanted

    def _subscribe(self, names: tuple[str, ...]) -> None:
        self._names = tuple(dict.fromkeys(names))
        # A client forgets what it no longer wants.
        self._held = {name: resource for name, resource in self._held.items() if name in self._names}

    def _conclude(self, request: Request) -> Answer | None:
        pending, self._pending = self._pending, None
        if pending is None:  # answered before: only the subscription can have changed
            return None
        names = tuple(resource.name for resource in pending.resources)
        if request.error is None and request.version == pending.version:
            self._accept(pending)
            return Acknowledged(pending.version, names)
        self._refuse(pending)
        reason = redact_refusal(request.error) if request.error else "refused without an error text"
        return Rejected(pending.version, names, reason)

    def _accept(self, push: Push) -> None:
        self._held |= {resource.name: resource for resource in push.resources}
        self._suspects = [resource for resource in self._suspects if resource not in push.resources]

    def _refuse(self, push: Push) -> None:
        changed = [resource for resource in push.resources if self._held.get(resource.name) != resource]
        if len(changed) == 1:
            self._refused[changed[0].name] = changed[0]
            self._suspects = [resource for resource in self._suspects if resource not in changed]
        elif changed:  # there were no suspects before: while there are, changes go out one by one
            self._suspects = changed
        self._must_restore = bool(changed)

    def _restored(self) -> tuple[Resource, ...]:
        """What was accepted last, once after a refusal."""
        must_restore, self._must_restore = self._must_restore, False
        return tuple(self._held.values()) if must_restore else ()

    def _changed(self, available: Available) -> tuple[Resource, ...]:
        """Everything that the client should have, if it differs from what the client holds."""
        self._forget_outdated(available)
        wanted = [best for name in self.names if name in available and (best := self._best(available[name]))]
        return tuple(wanted) if any(self._held.get(resource.name) != resource for resource in wanted) else ()

    def _best(self, current: Resource) -> Resource | None:
        """The current secret, or the one accepted last where the current one is refused or has to wait."""
        must_wait = bool(self._suspects) and current != self._suspects[0]
        is_refused = self._refused.get(current.name) == current
        return self._held.get(current.name) if must_wait or is_refused else current

    def _forget_outdated(self, available: Available) -> None:
        """Refusals and suspicions hold for one content of a name that is wanted."""

        def is_current(resource: Resource) -> bool:
            return resource.name in self.names and available.get(resource.name) == resource

        self._refused = {name: resource for name, resource in self._refused.items() if is_current(resource)}
        self._suspects = [resource for resource in self._suspects if is_current(resource)]


def _check_bounds(names: tuple[str, ...]) -> None:
    if len(names) > MAX_NAMES:
        raise BadInput(f"{len(names)} resource names, at most {MAX_NAMES} are read", rule="too_many_names")
    if any(len(name.encode()) > MAX_NAME_BYTES for name in names):
        raise BadInput(f"a resource name of more than {MAX_NAME_BYTES} bytes", rule="name_too_long")
