"""The current secrets of one socket, by name: one immutable snapshot that every stream reads.

It lives on the event loop and is used from nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from citadel_py.core.secrets import Secret
from citadel_py.sds.delta import DeltaPush
from citadel_py.sds.encoding import (
    Resource,
    encode_delta_response,
    encode_response,
    encode_secret,
    with_delta_nonce,
    with_nonce,
)
from citadel_py.sds.listeners import Listeners
from citadel_py.sds.names import why_withheld
from citadel_py.sds.stream import Push

MAX_SHARED: Final = 256  # responses of one snapshot: clients choose the selection and its order

# The kind of a response, its names and their version: equal ones have equal content.
_Content: TypeAlias = tuple[type[Push | DeltaPush], tuple[str, ...], str]


class Hub:
    """Implements core.ports.SecretSink. Streams `listen`, and read `snapshot` when they are woken."""

    def __init__(self) -> None:
        self._snapshot: Mapping[str, Resource] = MappingProxyType({})
        self._withheld: Mapping[str, str] = {}
        self._listeners = Listeners()
        self.listen = self._listeners.listen
        self._responses: dict[_Content, bytes] = {}
        self._is_closed = False

    @property
    def snapshot(self) -> Mapping[str, Resource]:
        """The secrets of this moment; a later change makes another snapshot."""
        return self._snapshot

    @property
    def is_closed(self) -> bool:
        """True when streams should end."""
        return self._is_closed

    def replace(self, secrets: Iterable[Secret]) -> None:
        """Make these the current ones under their names; others stay. Equal content changes nothing."""
        changed = [secret for secret in secrets if self._version(secret.name) != secret.version]
        if not changed:
            return
        encoded = {secret.name: encode_secret(secret) for secret in changed}
        self._become({**self._snapshot, **encoded})

    def withdraw(self, names: Iterable[str]) -> None:
        """Serve these names no more. Clients of the incremental protocol are told; the others keep what they have."""
        gone = set(names) & self._snapshot.keys()
        if gone:
            self._become({name: resource for name, resource in self._snapshot.items() if name not in gone})

    def explain(self, withheld: Mapping[str, str]) -> None:
        """Have these reasons, and no others, for names that nothing (new) is served under."""
        self._withheld = dict(withheld)

    def why_withheld(self, name: str) -> str | None:
        """In words, why there is nothing (new) to send under a name; None where there is."""
        return self._withheld.get(name) or (None if name in self._snapshot else why_withheld(name))

    def close(self) -> None:
        """Have all streams end."""
        self._is_closed = True
        self._listeners.wake()

    def response(self, push: Push | DeltaPush) -> bytes:
        """The serialized response; all but the nonce is encoded once for all streams."""
        content = (type(push), push.names, push.version)
        encoded = self._responses.get(content)
        if encoded is None:
            encoded = _encode(push)
            if len(self._responses) < MAX_SHARED and self._is_current(push.resources):
                self._responses[content] = encoded
        return with_nonce(encoded, push.nonce) if isinstance(push, Push) else with_delta_nonce(encoded, push.nonce)

    def _become(self, secrets: Mapping[str, Resource]) -> None:
        self._snapshot = MappingProxyType(dict(secrets))
        self._responses.clear()
        self._listeners.wake()

    def _is_current(self, resources: Iterable[Resource]) -> bool:
        """Restored ones are sent once and not worth keeping."""
        return all(self._snapshot.get(resource.name) == resource for resource in resources)

    def _version(self, name: str) -> str | None:
        resource = self._snapshot.get(name)
        return resource.version if resource else None


def _encode(push: Push | DeltaPush) -> bytes:
    if isinstance(push, Push):
        return encode_response(push.version, push.resources)
    return encode_delta_response(push.version, push.resources, push.removed)
