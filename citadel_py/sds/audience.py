"""Who may have what over TCP: validation contexts for every peer of the trust domain, keys only where they are granted.

Whoever may not have a secret is served from a hub that does not hold it, so that no stream has to decide
anything, and names that exist look like names that do not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from citadel_py.core.secrets import CertificateSecret, Secret
from citadel_py.core.spiffe import SpiffeID
from citadel_py.sds.hub import Hub

_WITHHELD = "this peer is not one of those that may have keys"


class Audience:
    """The secrets of one listener, once with keys and once without. Implements core.ports.SecretSink."""

    def __init__(self, may_have_keys: Collection[SpiffeID] = ()) -> None:
        self._may_have_keys = frozenset(may_have_keys)
        self._all, self._without_keys = Hub(), Hub()

    def hub_for(self, peer: SpiffeID) -> Hub:
        """What this peer may have. `peer` was verified."""
        return self._all if peer in self._may_have_keys else self._without_keys

    def replace(self, secrets: Iterable[Secret]) -> None:
        """As Hub.replace."""
        every = tuple(secrets)
        self._all.replace(every)
        self._without_keys.replace(secret for secret in every if not isinstance(secret, CertificateSecret))

    def withdraw(self, names: Iterable[str]) -> None:
        """As Hub.withdraw."""
        gone = tuple(names)
        for hub in (self._all, self._without_keys):
            hub.withdraw(gone)

    def explain(self, withheld: Mapping[str, str]) -> None:
        """As Hub.explain. The reasons are for logs and status: clients are told none."""
        self._all.explain(withheld)
        keys = self._all.snapshot.keys() - self._without_keys.snapshot.keys()
        self._without_keys.explain({**dict.fromkeys(keys, _WITHHELD), **withheld})

    def close(self) -> None:
        """As Hub.close."""
        for hub in (self._all, self._without_keys):
            hub.close()
