"""Who may have what: the decision between an attested caller and what it wants.

Nothing here attests anybody; callers arrive attested.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TypeAlias

from citadel_py.core.csr import RequestedNames
from citadel_py.core.duration import format_duration
from citadel_py.core.errors import BadInput, InvalidConfiguration, InvalidCSR, LifetimeRefused, PermissionDenied
from citadel_py.core.spiffe import SpiffeID, TrustDomain

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MAX_DNS_BYTES = 253


class Method(StrEnum):
    """How a caller was attested."""

    MTLS = "mtls"
    JWT = "jwt"
    JOIN_TOKEN = "join_token"  # noqa: S105 - the name of a method, no secret
    OFFLINE = "offline"  # a person or job that holds the authority's directory
    SELF = "self"  # this program, for its own serving certificate


_TRUSTED = frozenset({Method.OFFLINE, Method.SELF})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: how it was attested, as whom (for the record), and the identity that it has."""

    method: Method
    subject: str
    id: SpiffeID | None = None


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

    def choose(self, wanted: timedelta | None) -> timedelta:
        """The lifetime to grant. Raises LifetimeRefused, which names both numbers."""
        if wanted is None:
            return self.default
        if wanted > self.maximum:
            raise LifetimeRefused(
                f"lifetime of {_with_seconds(wanted)} is above the maximum of {_with_seconds(self.maximum)}",
                rule="lifetime_above_maximum",
            )
        if wanted < self.minimum:
            raise LifetimeRefused(
                f"lifetime of {_with_seconds(wanted)} is below the minimum of {_with_seconds(self.minimum)}",
                rule="lifetime_below_minimum",
            )
        return wanted


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one authority. By default a caller may have its own identity and nothing else.

    `relax_names` ignores names in a CSR that were not granted instead of refusing it, for agents
    that ask for more than they get.
    """

    trust_domain: TrustDomain
    limits: TTLLimits = field(default_factory=TTLLimits)
    relax_names: bool = False

    def decide(self, caller: Caller, wanted: Wanted) -> Grant:
        """The grant for this caller. Raises PermissionDenied, LifetimeRefused or BadInput."""
        spiffe_id = self._decide_id(caller, wanted.id)
        if (wanted.dns or wanted.ips) and caller.method not in _TRUSTED:
            raise PermissionDenied(f"{caller.subject} may not have DNS or IP names", rule="names_not_granted")
        for name in wanted.dns:
            check_dns_name(name)
        return Grant(spiffe_id, self.limits.choose(wanted.ttl), wanted.dns, wanted.ips)

    def check_names(self, names: RequestedNames, grant: Grant) -> None:
        """Raise InvalidCSR where a CSR asks for a name beyond the grant (an equal one is fine)."""
        if self.relax_names:
            return
        not_granted = (
            *(name for name in names.uris if name != str(grant.id)),
            *(name for name in names.dns if name not in grant.dns),
            *(name for name in names.others if name not in map(str, grant.ips)),
        )
        if not_granted:
            raise InvalidCSR(
                f"the CSR asks for the name {not_granted[0][:100]!a}, which this caller may not have",
                rule="csr_san_not_granted",
                hint=f"leave the subject alternative name out, or ask for {grant.id}",
            )

    def _decide_id(self, caller: Caller, wanted: SpiffeID | None) -> SpiffeID:
        spiffe_id = wanted or caller.id
        if spiffe_id is None:
            raise PermissionDenied(f"{caller.subject} has no identity of its own", rule="caller_without_identity")
        if caller.method not in _TRUSTED and spiffe_id != caller.id:
            raise PermissionDenied(f"{caller.subject} may not have {spiffe_id}", rule="identity_not_granted")
        if spiffe_id.trust_domain != self.trust_domain:
            raise PermissionDenied(
                f"{spiffe_id} is not in the trust domain {self.trust_domain} of this authority",
                rule="foreign_trust_domain",
            )
        if not spiffe_id.path:
            raise PermissionDenied(
                f"{spiffe_id} has no path: it is an authority, no workload", rule="leaf_id_without_path"
            )
        return spiffe_id


def check_dns_name(name: str) -> None:
    """Raise BadInput unless the name is a lower-case host name (RFC 1123 2.1), no wildcard."""
    if len(name) > _MAX_DNS_BYTES or not all(_DNS_LABEL.fullmatch(label) for label in name.split(".")):
        raise BadInput(f"{name[:100]!a} is not a lower-case DNS host name", rule="invalid_dns_name")


def _with_seconds(duration: timedelta) -> str:
    return f"{format_duration(duration)} ({int(duration.total_seconds())} s)"
