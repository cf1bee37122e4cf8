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

from citadel_py.sds.encoding import Resource
from citadel_py.sds.holdings import Acknowledged, Answer, Available, Holdings, Rejected, check_bounds, rejected

__all__ = ["Acknowledged", "Answer", "Available", "Push", "Rejected", "Request", "Stream", "version_of"]


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

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(resource.name for resource in self.resources)


def version_of(resources: Iterable[Resource]) -> str:
    """One resource's own version, or a hash over those of several, whatever their order."""
    versions = sorted(resource.version for resource in resources)
    if len(versions) == 1:
        return versions[0]
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:32]


class Stream:
    """The state of one stream. Feed every request to `receive`, then send what `next_push` says, if anything."""

    __slots__ = ("_count", "_holdings", "_must_restore", "_names", "_pending")

    def __init__(self) -> None:
        self._names: tuple[str, ...] | None = None  # None until the first request
        self._count = 0  # responses sent; the last one's nonce
        self._pending: Push | None = None
        self._holdings = Holdings()
        self._must_restore = False

    @property
    def names(self) -> tuple[str, ...]:
        """What the client wants."""
        return self._names or ()

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
        return tuple(name for name in self.names if name not in available)

    def receive(self, request: Request, available: Available) -> Answer | None:
        """Take in a request; what it says about the last response, if it is an answer.

        Raises BadInput where it asks for more than any client does.
        """
        check_bounds(request.names)
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
            self._holdings.accept(wanted.values())

    def _subscribe(self, names: tuple[str, ...]) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._holdings.keep_only(self._names)

    def _conclude(self, request: Request) -> Answer | None:
        pending, self._pending = self._pending, None
        if pending is None:  # answered before: only the subscription can have changed
            return None
        if request.error is None and request.version == pending.version:
            self._holdings.accept(pending.resources)
            return Acknowledged(pending.version, pending.names)
        self._must_restore = self._holdings.refuse(pending.resources)
        return rejected(pending.version, pending.names, request.error)

    def _restored(self) -> tuple[Resource, ...]:
        """What was accepted last, once after a refusal."""
        must_restore, self._must_restore = self._must_restore, False
        return tuple(self._holdings.held.values()) if must_restore else ()

    def _changed(self, available: Available) -> tuple[Resource, ...]:
        """Everything that the client should have, if it differs from what the client holds."""
        self._holdings.forget_outdated(self.names, available)
        wanted = [best for name in self.names if name in available and (best := self._holdings.best(available[name]))]
        return () if all(map(self._holdings.holds, wanted)) else tuple(wanted)
