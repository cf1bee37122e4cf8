"""What a client holds and what it has refused: the part that both forms of xDS have. No I/O.

A refused secret is not sent again until it changes. Where several had changed in a refused response,
each of them is tried alone, so that one bad secret never holds up others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from citadel_py.core.errors import BadInput
from citadel_py.sds.encoding import Resource
from citadel_py.sds.refusals import redact_refusal

MAX_NAMES = 1000
MAX_NAME_BYTES = 2100  # a SPIFFE ID with room to spare

Available: TypeAlias = Mapping[str, Resource]


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


def rejected(version: str, names: tuple[str, ...], error: str | None) -> Rejected:
    """The refusal of a client, with what may be kept of its text."""
    return Rejected(version, names, redact_refusal(error) if error else "refused without an error text")


class Holdings:
    """Secrets of one client on one stream, by name: what it took, and what it refused and is still current."""

    __slots__ = ("_suspects", "held", "refused")

    def __init__(self) -> None:
        self.held: dict[str, Resource] = {}
        self.refused: dict[str, Resource] = {}
        self._suspects: list[Resource] = []  # were refused together, to be tried one by one

    def holds(self, resource: Resource) -> bool:
        return self.held.get(resource.name) == resource

    def keep_only(self, names: Collection[str]) -> None:
        """A client forgets what it no longer wants."""
        self.held = {name: resource for name, resource in self.held.items() if name in names}

    def accept(self, resources: Collection[Resource]) -> None:
        self.held |= {resource.name: resource for resource in resources}
        self._suspects = [resource for resource in self._suspects if resource not in resources]

    def refuse(self, resources: Iterable[Resource]) -> bool:
        """Whether any of these was new to the client: only then there is something to blame."""
        changed = [resource for resource in resources if not self.holds(resource)]
        if len(changed) == 1:
            self.refused[changed[0].name] = changed[0]
            self._suspects = [resource for resource in self._suspects if resource not in changed]
        elif changed:  # there were no suspects before: while there are, changes go out one by one
            self._suspects = changed
        return bool(changed)

    def best(self, current: Resource) -> Resource | None:
        """The current secret, or the one accepted last where the current one is refused or has to wait."""
        must_wait = bool(self._suspects) and current != self._suspects[0]
        is_refused = self.refused.get(current.name) == current
        return self.held.get(current.name) if must_wait or is_refused else current

    def forget_outdated(self, wanted: Collection[str], available: Available) -> None:
        """Refusals and suspicions hold for one content of a name that is wanted."""

        def is_current(resource: Resource) -> bool:
            return resource.name in wanted and available.get(resource.name) == resource

        self.refused = {name: resource for name, resource in self.refused.items() if is_current(resource)}
        self._suspects = [resource for resource in self._suspects if is_current(resource)]


def check_bounds(names: Collection[str]) -> None:
    """Raises BadInput where a client asks for more than any client does."""
    if len(names) > MAX_NAMES:
        raise BadInput(f"{len(names)} resource names, at most {MAX_NAMES} are read", rule="too_many_names")
    if any(len(name.encode()) > MAX_NAME_BYTES for name in names):
        raise BadInput(f"a resource name of more than {MAX_NAME_BYTES} bytes", rule="name_too_long")
