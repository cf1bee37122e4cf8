"""What a request asks for beside its CSR, read strictly. Nothing is granted here."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from citadel_py._proto.citadel.v1.issuance_pb2 import IssueRequest
from citadel_py._proto.istio.v1.auth.ca_pb2 import IstioCertificateRequest
from citadel_py.core.errors import BadInput, LifetimeRefused
from citadel_py.core.policy import TTLLimits, Wanted
from citadel_py.core.spiffe import SpiffeID

MAX_DNS_NAMES = 64
_LONGEST_WAIT = timedelta(hours=1)
_MANY_SECONDS = 10**9


def read_wishes(request: IstioCertificateRequest, limits: TTLLimits) -> Wanted:
    """The wishes of a request. Raises BadInput, InvalidSpiffeID or LifetimeRefused.

    Keys of `metadata` that are not known are passed over, as newer clients expect. A signer that is
    named and that we are not is refused: the caller would get another issuer than it asked for.
    """
    if signer := _text(request.metadata, "CertSigner"):
        raise BadInput(
            f"there is no signer {signer[:100]!a} here, only this authority itself",
            rule="cert_signer_unknown",
            hint="leave CertSigner out of the metadata, or empty",
        )
    impersonated = _text(request.metadata, "ImpersonatedIdentity")
    return Wanted(
        id=SpiffeID.parse(impersonated) if impersonated else None,
        ttl=_lifetime(request.validity_duration, limits),
    )


def read_stream_wishes(request: IssueRequest, limits: TTLLimits) -> Wanted:
    """The wishes of a request on a stream. Raises BadInput, InvalidSpiffeID or LifetimeRefused."""
    if len(request.dns_names) > MAX_DNS_NAMES:
        raise BadInput(f"more than {MAX_DNS_NAMES} DNS names", rule="too_many_dns_names")
    return Wanted(
        id=SpiffeID.parse(request.spiffe_id) if request.spiffe_id else None,
        dns=tuple(dict.fromkeys(request.dns_names)),
        ttl=_asked_lifetime(request.lifetime, limits) if request.HasField("lifetime") else None,
    )


def read_timeout(request: IssueRequest) -> timedelta | None:
    """How long the client of a request on a stream waits; None where it does not say. Never more than an hour."""
    if not request.HasField("timeout"):
        return None
    return min(_duration(request.timeout), _LONGEST_WAIT)


def _duration(value: Duration) -> timedelta:
    if not -_MANY_SECONDS < value.seconds < _MANY_SECONDS:
        return _LONGEST_WAIT if value.seconds > 0 else timedelta(0)
    return timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)


def _asked_lifetime(lifetime: Duration, limits: TTLLimits) -> timedelta:
    """Whole seconds. What is there is a wish, also where it can only be refused."""
    return _lifetime(lifetime.seconds, limits) or timedelta(0)


def _lifetime(seconds: int, limits: TTLLimits) -> timedelta | None:
    """Compared as numbers first: 64 bits of seconds are more than a timedelta holds."""
    if seconds <= 0:
        return None
    maximum_s = int(limits.maximum.total_seconds())
    if seconds > maximum_s:
        raise LifetimeRefused(
            f"a lifetime of {seconds} s is above the maximum of {maximum_s} s", rule="lifetime_above_maximum"
        )
    return timedelta(seconds=seconds)


def _text(metadata: Struct, key: str) -> str:
    """The text under a key; empty where there is none. Raises BadInput for any other kind of value."""
    if key not in metadata.fields:
        return ""
    value = metadata.fields[key]
    if value.WhichOneof("kind") not in ("string_value", "null_value"):
        raise BadInput(f"{key} in the metadata is no text", rule="metadata_kind")
    return value.string_value
