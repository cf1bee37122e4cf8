"""What the packages need of each other, as protocols; app.py plugs the parts together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from citadel_py.core.bundle import Bundle
from citadel_py.core.keys import PrivateKey
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.secrets import Secret
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.x509svid import X509SVID

Now: TypeAlias = Callable[[], datetime]  # aware UTC wall clock
Uniform: TypeAlias = Callable[[], float]  # one draw from [0, 1)


class Ledger(Protocol):
    """The durable record of every certificate."""

    def append(self, entries: Sequence[LedgerEntry]) -> None:
        """Record all of them in one durable transaction, or none.

        Raises LedgerUnavailable; CitadelError (`duplicate_serial`) where a serial was issued before.
        """
        ...


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A one-time token as it is kept: never the token itself, only its SHA-256."""

    digest: bytes
    id: SpiffeID
    expires_at: datetime


class TokenStore(Protocol):
    """One-time join tokens."""

    def add(self, token: JoinToken) -> None:
        """Keep a new token, durably. Raises LedgerUnavailable."""
        ...

    def find(self, digest: bytes, *, now: datetime) -> JoinToken:
        """The usable token with this digest. Raises Unauthenticated when unknown, used or expired."""
        ...

    def redeem(self, digest: bytes, *, now: datetime) -> None:
        """Use the token up, durably; of several at once exactly one succeeds.

        Raises Unauthenticated when it is unknown, used or expired, LedgerUnavailable.
        """
        ...


@dataclass(frozen=True, slots=True)
class SignedReply:
    """What an authority answers: the leaf's chain without the root, the bundle, and maybe advice."""

    svid: X509SVID
    bundle: Bundle
    renew_at: datetime | None = None


class CertificateSource(Protocol):
    """Where an agent's certificates come from: a CA service, or the engine in this process."""

    async def sign(self, csr_pem: bytes, *, id: SpiffeID, ttl: timedelta | None, held: HeldSVID | None) -> SignedReply:
        """Have a CSR signed; `held` is the SVID that may vouch for its own renewal.

        The reply is verified: it is for `id` and chains to its bundle. Raises CitadelError;
        Unavailable where trying again can help.
        """
        ...


@dataclass(frozen=True, slots=True)
class HeldSVID:
    """An SVID with its key as the agent keeps it; `renew_at` was drawn once, when it was issued."""

    svid: X509SVID
    key: PrivateKey
    bundle: Bundle
    issued_at: datetime
    renew_at: datetime


class SVIDStore(Protocol):
    """Where an agent keeps its SVIDs over a restart."""

    def load(self, id: SpiffeID) -> HeldSVID | None:
        """The last one saved; None where there is none or it is unreadable (set aside and reported)."""
        ...

    def save(self, held: HeldSVID) -> None:
        """Replace it as a set, durably; after a crash the old or the new one is there. Raises Unavailable."""
        ...


class SecretSink(Protocol):
    """Who is told of new secrets: the SDS hub, a writer of files."""

    def replace(self, secrets: Iterable[Secret]) -> None:
        """Make these the current ones under their names; others stay as they are."""
        ...
