"""Messages of the trust stream at the agent's end, to and from values.

What comes is read strictly; whether it may be taken is decided in trust_state.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from typing import Final

from citadel_py._proto.citadel.v1 import trust_pb2
from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import load_der_crls
from citadel_py.core.errors import BadInput, InvalidBundle, VerificationFailed
from citadel_py.core.pem import load_certificate
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.trust import MAX_INTERMEDIATES, ProxyReport, RenewalHint, Trust, TrustVersion

MAX_MESSAGE_BYTES: Final = 48 * 1024  # of reports; the service reads 64 KiB
_MAX_AUTHORITIES: Final = 256
_MAX_NAME_BYTES: Final = 256
_HASH_BYTES: Final = 32


def read_trust(message: trust_pb2.Trust, trust_domain: TrustDomain) -> Trust:
    """What the CA asks us to trust. Raises CitadelError where it cannot be read, or is of another trust domain."""
    named = message.bundle.trust_domain
    if named != trust_domain.name:
        raise VerificationFailed(
            f"the CA sent the bundle of {named[:100]!a}, not of {trust_domain}", rule="trust_domain_mismatch"
        )
    if len(message.bundle.x509_authorities) > _MAX_AUTHORITIES or len(message.intermediates) > MAX_INTERMEDIATES:
        raise InvalidBundle(
            f"more than {_MAX_AUTHORITIES} authorities or {MAX_INTERMEDIATES} intermediates", rule="bundle_too_large"
        )
    authorities = tuple(map(load_certificate, message.bundle.x509_authorities))
    return Trust(
        Bundle(trust_domain, authorities, message.bundle.sequence),
        load_der_crls(message.crls),
        tuple(map(load_certificate, message.intermediates)),
    )


def read_version(message: trust_pb2.Trust) -> TrustVersion | None:
    """What the CA calls it, for telling that it was refused; None where that cannot be told."""
    version = message.version
    if len(version.bundle_hash) != _HASH_BYTES or len(version.crl_hash) not in (0, _HASH_BYTES):
        return None
    return TrustVersion(version.sequence, version.bundle_hash.hex(), version.crl_hash.hex())


def read_hint(message: trust_pb2.RenewalHint) -> RenewalHint:
    """A wish of the CA. Raises BadInput (`renewal_hint`)."""
    try:
        before = message.renew_before.ToDatetime(UTC) if message.HasField("renew_before") else None
    except (ValueError, OverflowError) as error:
        raise BadInput("a renewal hint names a moment that no calendar has", rule="renewal_hint") from error
    return RenewalHint(message.number, frozenset(message.serials), message.authority_id, before)


def report_messages(
    reports: Iterable[ProxyReport], *, agent: str = "", version: str = "", is_complete: bool = False
) -> Iterator[trust_pb2.TrustReports]:
    """Messages within their bound; the first names the agent, the last is complete if all of them together are."""
    chunks = list(_chunks([_report(each) for each in reports])) or [[]]
    for number, chunk in enumerate(chunks, 1):
        names = {"agent": agent, "version": version} if number == 1 else {}
        yield trust_pb2.TrustReports(reports=chunk, is_complete=is_complete and number == len(chunks), **names)


def _chunks(reports: Sequence[trust_pb2.ProxyReport]) -> Iterator[list[trust_pb2.ProxyReport]]:
    chunk: list[trust_pb2.ProxyReport] = []
    size = 0
    for report in reports:
        if chunk and size + report.ByteSize() > MAX_MESSAGE_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(report)
        size += report.ByteSize() + 4  # its tag and length
    if chunk:
        yield chunk


def _report(report: ProxyReport) -> trust_pb2.ProxyReport:
    return trust_pb2.ProxyReport(
        proxy=_cut(report.proxy),
        resource=_cut(report.resource),
        acknowledged=_version(report.acknowledged),
        rejected=_version(report.rejected),
        reason=report.reason,
        rejections=report.rejections,
        streams=report.streams,
    )


def _version(version: TrustVersion | None) -> trust_pb2.TrustVersion | None:
    if version is None:
        return None
    return trust_pb2.TrustVersion(
        sequence=version.sequence,
        bundle_hash=bytes.fromhex(version.bundle_hash),
        crl_hash=bytes.fromhex(version.crl_hash),
    )


def _cut(name: str) -> str:
    """Proxies call themselves as they like."""
    return name.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
