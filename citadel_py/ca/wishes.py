"""What a CreateCertificate request asks for beside its CSR, read strictly. Nothing is granted here."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.struct_pb2 import Struct

from citadel_py._proto.istio.v1.auth.ca_pb2 import IstioCertificateRequest
from citadel_py.core.errors import BadInput, LifetimeRefused
from citadel_py.core.policy import TTLLimits, Wanted
from citadel_py.core.spiffe import SpiffeID


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


def _lifetime(seconds: int, limits: TTLLimits) -> timedelta | None:
    """Compared as numbers first: 64 bits of seconds are more than a timedelta holds."""
    if seconds <= 0:
        return None
    maximum_s = int(limits.maximum.total_seconds())
    if seconds > maximum_s:
        raise LifetimeRefused(
            f"validity_duration of {seconds} s is above the maximum of {maximum_s} s", rule="lifetime_above_maximum"
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
