"""Messages of the trust stream, to and from values. What a client says is read here, within its bounds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.timestamp_pb2 import Timestamp

from citadel_py._proto.citadel.v1 import issuance_pb2, trust_pb2
from citadel_py.core.errors import BadInput
from citadel_py.core.trust import ProxyReport, RenewalHint, Trust, TrustVersion

_MAX_NAME_BYTES: Final = 256
_MAX_AGENT_BYTES: Final = 128
_REASON: Final = re.compile(r"[a-z0-9_]{0,64}")
_HASH_BYTES: Final = 32


def news(trust: Trust, hints: Iterable[RenewalHint], *, authority_id: str, epoch: int) -> bytes:
    """The message for all streams, as it goes out."""
    message = trust_pb2.TrustNews(
        trust=trust_pb2.Trust(
            bundle=issuance_pb2.Bundle(
                trust_domain=trust.trust_domain.name,
                x509_authorities=[each.public_bytes(Encoding.DER) for each in trust.bundle.authorities],
                sequence=trust.bundle.sequence,
            ),
            crls=[each.public_bytes(Encoding.DER) for each in trust.crls],
            intermediates=[each.public_bytes(Encoding.DER) for each in trust.intermediates],
            version=_version_message(trust.version),
            authority_id=authority_id,
            serving_epoch=epoch,
        ),
        hints=map(_hint_message, hints),
    )
    return message.SerializeToString()


def read_agent(message: trust_pb2.TrustReports) -> str:
    """What an agent calls itself. Raises BadInput (`trust_report`)."""
    if len(message.agent.encode()) > _MAX_AGENT_BYTES or len(message.version.encode()) > _MAX_AGENT_BYTES:
        raise BadInput(f"an agent's name or version of more than {_MAX_AGENT_BYTES} bytes", rule="trust_report")
    return message.agent


def read_report(message: trust_pb2.ProxyReport) -> ProxyReport:
    """One report. Raises BadInput (`trust_report`)."""
    for name in (message.proxy, message.resource):
        if len(name.encode()) > _MAX_NAME_BYTES:
            raise BadInput(f"a name of more than {_MAX_NAME_BYTES} bytes in a report", rule="trust_report")
    if not _REASON.fullmatch(message.reason):
        raise BadInput("the reason in a report is no code of a-z, 0-9 and _", rule="trust_report")
    return ProxyReport(
        message.proxy,
        message.resource,
        acknowledged=_version(message.acknowledged) if message.HasField("acknowledged") else None,
        rejected=_version(message.rejected) if message.HasField("rejected") else None,
        reason=message.reason,
        rejections=message.rejections,
        streams=message.streams,
    )


def _version(message: trust_pb2.TrustVersion) -> TrustVersion:
    if len(message.bundle_hash) != _HASH_BYTES or len(message.crl_hash) not in (0, _HASH_BYTES):
        raise BadInput("a hash in a report is no SHA-256", rule="trust_report")
    return TrustVersion(message.sequence, message.bundle_hash.hex(), message.crl_hash.hex())


def _version_message(version: TrustVersion) -> trust_pb2.TrustVersion:
    return trust_pb2.TrustVersion(
        sequence=version.sequence,
        bundle_hash=bytes.fromhex(version.bundle_hash),
        crl_hash=bytes.fromhex(version.crl_hash),
    )


def _hint_message(hint: RenewalHint) -> trust_pb2.RenewalHint:
    message = trust_pb2.RenewalHint(number=hint.number, serials=sorted(hint.serials), authority_id=hint.authority_id)
    if hint.renew_before is not None:
        message.renew_before.CopyFrom(Timestamp(seconds=int(hint.renew_before.timestamp())))
    return message
