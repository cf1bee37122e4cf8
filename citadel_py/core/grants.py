"""The terms of a decision: who calls, what is wanted, what is granted, and for how long.

Nothing here decides who may have what: that is policy.py.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TypeAlias

from citadel_py.core.duration import format_duration
from citadel_py.core.errors import BadInput, InvalidConfiguration, LifetimeRefused
from citadel_py.core.spiffe import SpiffeID

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# Identities of the service itself lie under this path.
OWN_PATH = "/citadel-py/"
PROBE_PATH = f"{OWN_PATH}probe"  # as whom the service asks itself for certificates, to see that it issues

_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MAX_DNS_BYTES = 253


class Method(StrEnum):
    """How a caller was attested."""

    MTLS = "mtls"
    JWT = "jwt"
    JOIN_TOKEN = "join_token"  # noqa: S105 - the name of a method, no secret
    TOKEN_REVIEW = "token_review"  # noqa: S105 - the same
    OFFLINE = "offline"  # a person or job that holds the authority's directory
    SELF = "self"  # this program, for its own serving certificate

    @property
    def is_trusted(self) -> bool:
        """Whoever comes so holds the authority's key already: rules have nothing to say to it."""
        return self in (Method.OFFLINE, Method.SELF)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: how it was attested, as whom (for the record), and the identity that it has.

    `issuer` is who vouches for `subject`, such as the `iss` of a token; None where the subject is a
    name of our own making.
    """

    method: Method
    subject: str
    id: SpiffeID | None = None
    issuer: str | None = None

    @property
    def is_probe(self) -> bool:
        """Whether it is the service itself, as its own client. A certificate alone can say so: see Policy."""
        return self.method is Method.MTLS and self.id is not None and self.id.path == PROBE_PATH


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; `None` and empty mean 'what I may have by default'."""

    id: SpiffeID | None = None
    dns: tuple[str, ...] = ()
    ips: tuple[IPAddress, ...] = ()
    ttl: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What the caller gets: one SPIFFE ID, further names, and a lifetime."""

    id: SpiffeID
    ttl: timedelta
    dns: tuple[str, ...] = ()
    ips: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class TTLLimits:
    """Range of leaf lifetimes. Raises InvalidConfiguration when the three are not in order."""

    default: timedelta = timedelta(hours=24)
    minimum: timedelta = timedelta(minutes=1)
    maximum: timedelta = timedelta(days=90)

    def __post_init__(self) -> None:
        if not timedelta(0) < self.minimum <= self.default <= self.maximum:
            raise InvalidConfiguration(
                f"leaf lifetimes out of order: minimum {format_duration(self.minimum)}, default "
                f"{format_duration(self.default)}, maximum {format_duration(self.maximum)}",
                rule="ttl_limits_order",
            )

    def allows(self, wanted: timedelta | None) -> bool:
        """Whether this lifetime, or the default one for None, is granted."""
        return wanted is None or self.minimum <= wanted <= self.maximum

    def refusal(self, wanted: timedelta | None) -> LifetimeRefused | None:
        """Why this lifetime is not granted, with both numbers; None where it is."""
        if wanted is None or self.allows(wanted):
            return None
        above = wanted > self.maximum
        side, limit = ("above the maximum", self.maximum) if above else ("below the minimum", self.minimum)
        return LifetimeRefused(
            f"lifetime of {_with_seconds(wanted)} is {side} of {_with_seconds(limit)}",
            rule="lifetime_above_maximum" if above else "lifetime_below_minimum",
        )

    def choose(self, wanted: timedelta | None) -> timedelta:
        """The lifetime to grant. Raises LifetimeRefused, which names both numbers."""
        refusal = self.refusal(wanted)
        if refusal:
            raise refusal
        return self.default if wanted is None else wanted


def check_dns_name(name: str) -> None:
    """Raise BadInput unless the name is a lower-case host name (RFC 1123 2.1), no wildcard."""
    if not is_dns_name(name):
        raise BadInput(f"{name[:100]!a} is not a lower-case DNS host name", rule="invalid_dns_name")


def is_dns_name(name: str) -> bool:
    """Whether it is a lower-case host name. One that ends in a number reads like an IP address, and is none."""
    if len(name) > _MAX_DNS_BYTES:
        return False
    labels = name.split(".")
    return all(map(_DNS_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def is_dns_label(label: str) -> bool:
    """Whether it can be one label of a host name."""
    return _DNS_LABEL.fullmatch(label) is not None


def _with_seconds(duration: timedelta) -> str:
    return f"{format_duration(duration)} ({int(duration.total_seconds())} s)"
