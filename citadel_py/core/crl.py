"""Certificate revocation lists: read, judged against the authorities they speak for, and made.

Envoy's rule decides what is usable: once there is a CRL, every authority of a path needs a current
one, or all handshakes fail. So there are CRLs for the whole path or none, and one that is bad is
left out and told, never the reason that a good certificate is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py.core.errors import InvalidCRL
from citadel_py.core.keys import signing_hash
from citadel_py.core.pem import UNREADABLE
from citadel_py.core.profile import DEFAULT_BACKDATE, Authority, authority_key_identifier, subject_key_id
from citadel_py.core.svid_rules import describe, find, show_name

CRL = x509.CertificateRevocationList

MAX_CRL_BYTES = 1 << 20  # all of a trust domain together: they travel in one message
MAX_CRLS = 64
MAX_REVOKED = 25_000  # likewise

_BEGIN = re.compile(rb"-----BEGIN ([^\r\n]{0,64}?)-----")
_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----\r?\n[A-Za-z0-9+/=\r\n]+?-----END X509 CRL-----")
_STRONG = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True, slots=True)
class CRLCheck:
    """The CRLs that may be served, for the whole path or none, and in words what is wrong with the others."""

    usable: tuple[CRL, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Revoked:
    """A certificate that shall be refused, since a moment."""

    serial: int
    time: datetime


def load_crls(pem: bytes) -> tuple[CRL, ...]:
    """Read one or more PEM CRLs, in their order. Text outside the blocks is ignored (RFC 7468 2).

    Raises InvalidCRL: `crls_too_large`, `crls_missing`, `not_a_crl`, `crl_damaged`, `crl_unreadable`,
    `crl_entry_critical`, `crls_too_many`.
    """
    if len(pem) > MAX_CRL_BYTES:
        raise InvalidCRL(f"{len(pem)} bytes of CRLs, at most {MAX_CRL_BYTES} are read", rule="crls_too_large")
    labels = _BEGIN.findall(pem)
    if not labels:
        raise InvalidCRL("no PEM CRL", rule="crls_missing", hint="of DER: openssl crl -inform der -in FILE")
    for label in labels:
        if label != b"X509 CRL":
            raise InvalidCRL(f"a PEM block {label.decode('latin-1')!a} stands where only CRLs belong", rule="not_a_crl")
    blocks = _BLOCK.findall(pem)
    if not len(blocks) == len(labels) == pem.count(b"-----END ") == pem.count(b"BEGIN X509 CRL"):
        raise InvalidCRL("a CRL is cut off or its label is damaged", rule="crl_damaged")
    return _bounded(_read(x509.load_pem_x509_crl, block) for block in blocks)


def load_der_crls(ders: Iterable[bytes]) -> tuple[CRL, ...]:
    """Read CRLs of one trust domain, DER each. Raises InvalidCRL as `load_crls`."""
    texts = tuple(ders)
    if sum(map(len, texts)) > MAX_CRL_BYTES:
        raise InvalidCRL(f"CRLs of more than {MAX_CRL_BYTES} bytes", rule="crls_too_large")
    return _bounded(_read(x509.load_der_x509_crl, text) for text in texts)


def crls_pem(crls: Iterable[CRL]) -> bytes:
    """Canonical PEM blocks, one after the other."""
    return b"".join(crl.public_bytes(Encoding.PEM) for crl in crls)


def check_crls(
    crls: Iterable[CRL], authorities: Sequence[x509.Certificate], *, now: datetime, before: Iterable[CRL] = ()
) -> CRLCheck:
    """Which CRLs may be served at `now`, where these are all authorities that a path may have.

    Authorities that are not valid at `now` need none. A number that is lower than `before`, of the
    same authority, is refused: what was revoked would be so no more (RFC 5280 5.2.3). No CRLs at all
    are no problem.
    """
    given = tuple(crls)
    if not given:
        return CRLCheck()
    seen = {_key_id(crl): number_of(crl) for crl in before}
    found: dict[x509.Certificate, CRL] = {}
    problems: list[str] = []
    for crl in given:
        issuer = _issuer_of(crl, authorities)
        problem = _problem(crl, issuer, now, seen)
        if problem is not None or issuer is None:
            problems.append(f"the CRL of {show_name(crl.issuer)} {problem}")
        elif issuer not in found or number_of(crl) > number_of(found[issuer]):
            found[issuer] = crl
    lacking = [each for each in authorities if _is_valid(each, now) and each not in found]
    if lacking:
        problems += [f"{describe(each, 'authority')} has no usable CRL, so none can be served" for each in lacking]
        return CRLCheck((), tuple(problems))
    usable = tuple(crl for crl in given if any(crl is each for each in found.values()))
    return CRLCheck(usable, tuple(problems))


def ends_at(crls: Iterable[CRL]) -> datetime | None:
    """The first nextUpdate of these, None where there is none: after it peers refuse everybody."""
    return min((crl.next_update_utc for crl in crls if crl.next_update_utc), default=None)


def revoked_in(chain: Iterable[x509.Certificate], crls: Sequence[CRL]) -> x509.Certificate | None:
    """The first certificate of a path that a CRL of its issuer names, None where none does."""
    for certificate in chain:
        for crl in crls:
            # the stubs forget that most are not there
            entry: object = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if crl.issuer == certificate.issuer and entry is not None:
                return certificate
    return None


def build_crl(
    authority: Authority, revoked: Iterable[Revoked], *, number: int, now: datetime, next_update: datetime
) -> CRL:
    """A CRL of this authority (RFC 5280 5), valid from a little before `now` for clocks that are behind."""
    moment = now.astimezone(UTC).replace(microsecond=0)
    builder = x509.CertificateRevocationListBuilder(
        authority.certificate.subject, moment - DEFAULT_BACKDATE, next_update.astimezone(UTC).replace(microsecond=0)
    )
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    builder = builder.add_extension(authority_key_identifier(authority.certificate), critical=False)
    for each in sorted(revoked, key=lambda one: one.serial):
        entry = x509.RevokedCertificateBuilder(each.serial, each.time.astimezone(UTC).replace(microsecond=0))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority.key, signing_hash(authority.key))


def number_of(crl: CRL) -> int:
    """The CRL number; 0 where there is none."""
    return _number(crl) or 0


def is_issued_by(crl: CRL, authority: x509.Certificate) -> bool:
    """Whether a CRL claims to be this authority's: by name and by key, the signature is not looked at."""
    return crl.issuer == authority.subject and _key_id(crl) == subject_key_id(authority)


def _bounded(crls: Iterable[CRL]) -> tuple[CRL, ...]:
    found: list[CRL] = []
    entries = 0
    for crl in crls:
        found.append(crl)
        entries += len(crl)
        if len(found) > MAX_CRLS or entries > MAX_REVOKED:
            raise InvalidCRL(
                f"more than {MAX_CRLS} CRLs or {MAX_REVOKED} revoked certificates",
                rule="crls_too_many",
                hint="shorter lifetimes revoke by themselves",
            )
    return tuple(found)


def _read(load: object, text: bytes) -> CRL:
    """One CRL, with everything asked for that the library parses late."""
    try:
        crl: CRL = load(text)  # type: ignore[operator]  # one of the library's two functions
        for part in ("extensions", "issuer", "last_update_utc", "next_update_utc", "signature_hash_algorithm"):
            getattr(crl, part)
        entries = [(entry.serial_number, entry.revocation_date_utc, entry.extensions) for entry in crl]
    except UNREADABLE as error:
        raise InvalidCRL(f"a CRL cannot be read: {str(error)[:200]!a}", rule="crl_unreadable") from error
    # Of another issuer's certificate (RFC 5280 5.3.3), or something that nobody knows.
    if any(each.critical for _, _, extensions in entries for each in extensions):
        raise InvalidCRL("a CRL has an entry with a critical extension", rule="crl_entry_critical")
    return crl


def _issuer_of(crl: CRL, authorities: Iterable[x509.Certificate]) -> x509.Certificate | None:
    return next((each for each in authorities if is_issued_by(crl, each)), None)


def _problem(crl: CRL, issuer: x509.Certificate | None, now: datetime, seen: Mapping[str, int]) -> str | None:
    """What is wrong with one CRL, as the end of a sentence."""
    number = _number(crl)
    if issuer is None:
        return "is of no authority that is known here, by its name and key identifier"
    if number is None:
        return "has no number (RFC 5280 5.2.3)"
    if number < seen.get(_key_id(crl), 0):
        return f"has number {number}, which is lower than {seen[_key_id(crl)]} before it"
    if not _may_sign(issuer):
        return "is of an authority whose key usage does not allow to sign CRLs"
    if not _is_signed_by(crl, issuer):
        return "is not signed by that authority"
    return _problem_of_scope(crl) or _problem_of_time(crl, now)


def _problem_of_scope(crl: CRL) -> str | None:
    """RFC 5280 5.2.4, 5.2.5: a part of a list, or a change to one, is refused by verifiers."""
    if any(each.critical for each in crl.extensions):
        return "has a critical extension: it covers only a part, or changes another one"
    return None


def _problem_of_time(crl: CRL, now: datetime) -> str | None:
    if crl.next_update_utc is None:
        return "does not say when the next one comes"
    if now < crl.last_update_utc:
        return f"begins only at {crl.last_update_utc:%FT%TZ}"
    if now >= crl.next_update_utc:
        return f"ended at {crl.next_update_utc:%FT%TZ}"
    return None


def _is_signed_by(crl: CRL, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    if crl.signature_hash_algorithm is not None and not isinstance(crl.signature_hash_algorithm, _STRONG):
        return False
    try:
        return crl.is_signature_valid(key)  # type: ignore[arg-type]  # keys that cannot sign raise TypeError
    except UNREADABLE:
        return False


def _may_sign(issuer: x509.Certificate) -> bool:
    """Where key usage is stated it must allow it (RFC 5280 4.2.1.3)."""
    usage = find(issuer.extensions, x509.KeyUsage)
    return usage is None or usage.value.crl_sign


def _is_valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _number(crl: CRL) -> int | None:
    found = find(crl.extensions, x509.CRLNumber)
    return found.value.crl_number if found else None


def _key_id(crl: CRL) -> str:
    found = find(crl.extensions, x509.AuthorityKeyIdentifier)
    return found.value.key_identifier.hex() if found and found.value.key_identifier else ""
