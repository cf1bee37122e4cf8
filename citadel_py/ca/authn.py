"""Who calls: credentials of a call, and the authenticators that are tried on them in a fixed order.

What is found wrong is told in full to whoever reads our log, and never to the caller: the edge
answers every Unauthenticated with one and the same text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from citadel_py.core.errors import Unauthenticated, Unavailable
from citadel_py.core.policy import Caller
from citadel_py.core.profile import Validity

MAX_BEARER_BYTES = 16 * 1024
_SCHEME = "bearer "  # RFC 6750 2.1; the name of a scheme has no case (RFC 9110 11.1)


@dataclass(frozen=True, slots=True)
class CallCredentials:
    """What came with a call: the values of its authorization headers, and its peer's chain (PEM, leaf first)."""

    authorization: tuple[str | bytes, ...] = field(default=(), repr=False)
    peer_chain: bytes | None = None

    @property
    def bearer(self) -> str | None:
        """The bearer token; None where there is no header. Raises Unauthenticated.

        It is read by those who want one: a header that is broken does not spoil a certificate.
        """
        if not self.authorization:
            return None
        value = self.authorization[0]
        if len(self.authorization) > 1:
            raise Unauthenticated(
                f"{len(self.authorization)} authorization headers: it is unclear whose call this is",
                rule="credentials_ambiguous",
            )
        if not isinstance(value, str) or not value.isascii() or value[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated("the authorization header has no bearer token", rule="authorization_scheme")
        return _bounded(value[len(_SCHEME) :].strip())


def _bounded(token: str) -> str:
    if len(token) > MAX_BEARER_BYTES:
        raise Unauthenticated(
            f"a bearer token of {len(token)} bytes, at most {MAX_BEARER_BYTES} are read", rule="bearer_too_large"
        )
    return token


@dataclass(frozen=True, slots=True)
class Attested:
    """A caller that was authenticated.

    `held` is the validity of the certificate that it shows, if that is how it was attested.
    `use_up(now)`, of a one-time credential, takes it out of use; it is called once everything else
    about the request is settled, and raises Unauthenticated when somebody else was faster.
    """

    caller: Caller
    use_up: Callable[[datetime], Awaitable[None]] | None = field(default=None, repr=False)
    held: Validity | None = None


class Authenticator(Protocol):
    """One way to tell who calls."""

    async def attest(self, credentials: CallCredentials, *, now: datetime) -> Attested | None:
        """The caller; None where there is no credential of this kind.

        Raises Unauthenticated, or Unavailable where it cannot be told now.
        """
        ...


class Authentication:
    """Tries authenticators in their order; the first that knows the caller decides.

    A bad credential of one kind does not spoil a good one of another: an agent whose token has
    expired goes on with its certificate, and the other way round.
    """

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        self._authenticators = tuple(authenticators)

    async def attest(self, credentials: CallCredentials, *, now: datetime) -> Attested:
        """The caller. Raises Unauthenticated with all reasons, or Unavailable where one kind cannot be checked now."""
        refusals: list[Unauthenticated | Unavailable] = []
        for authenticator in self._authenticators:
            try:
                attested = await authenticator.attest(credentials, now=now)
            except (Unauthenticated, Unavailable) as error:
                refusals.append(error)
            else:
                if attested is not None:
                    return attested
        raise _refusal(refusals)


def _refusal(refusals: Sequence[Unauthenticated | Unavailable]) -> Unauthenticated | Unavailable:
    for error in refusals:
        if isinstance(error, Unavailable):
            return error
    if not refusals:
        return Unauthenticated("no credential that this service knows", rule="credentials_missing")
    reasons = dict.fromkeys(error.message for error in refusals)
    return Unauthenticated("; ".join(reasons), rule=refusals[0].rule)
