"""What verifies the certificates of a trust domain at a moment, and what is told about it up and down.

Values and decisions only; the stream between agents and the CA carries them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import CRL, check_crls, ends_at
from citadel_py.core.errors import VerificationFailed
from citadel_py.core.spiffe import TrustDomain

MAX_INTERMEDIATES = 32


@dataclass(frozen=True, slots=True)
class TrustVersion:
    """Which trust somebody holds. Hashes are lower-case hex SHA-256; `crl_hash` is empty where there are no CRLs."""

    sequence: int
    bundle_hash: str
    crl_hash: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
    """A bundle, and CRLs for every path below it or none.

    `intermediates` are the authorities below the bundle's, each before the one that signed it; they
    are trusted for nothing, and there because each needs a CRL, which somebody has to verify.
    """

    bundle: Bundle
    crls: tuple[CRL, ...] = ()
    intermediates: tuple[x509.Certificate, ...] = ()
    version: TrustVersion = field(init=False)

    def __post_init__(self) -> None:
        version = TrustVersion(self.bundle.sequence, self.bundle.content_hash, _crl_hash(self.crls))
        object.__setattr__(self, "version", version)

    @property
    def trust_domain(self) -> TrustDomain:
        return self.bundle.trust_domain

    @property
    def crls_end_at(self) -> datetime | None:
        """The moment from which peers with these CRLs refuse everybody; None where there are none."""
        return ends_at(self.crls)

    def at(self, now: datetime, *, before: Trust | None = None) -> tuple[Trust, tuple[str, ...]]:
        """This trust with the CRLs that are good at `now`, or with none; and in words what is wrong with them.

        `before` is what was held: numbers of CRLs only grow.
        """
        authorities = (*self.bundle.authorities, *self._proven_intermediates())
        check = check_crls(self.crls, authorities, now=now, before=before.crls if before else ())
        if check.usable == self.crls:
            return self, check.problems
        return replace(self, crls=check.usable), check.problems

    def _proven_intermediates(self) -> list[x509.Certificate]:
        """Those below an authority of the bundle: nobody else's CRL is believed."""
        proven: list[x509.Certificate] = []
        for each in reversed(self.intermediates):
            if any(_signed(each, by) for by in (*self.bundle.authorities, *proven)):
                proven.append(each)
        return proven


@dataclass(frozen=True, slots=True)
class ProxyReport:
    """What one proxy has taken of what it was sent under one name; the agent itself has neither name.

    `rejected` is newer than `acknowledged`, or None. `reason` is a stable code, never the proxy's own text.
    """

    proxy: str
    resource: str
    acknowledged: TrustVersion | None = None
    rejected: TrustVersion | None = None
    reason: str = ""
    rejections: int = 0
    streams: int = 1

    @property
    def key(self) -> tuple[str, str]:
        return self.proxy, self.resource


@dataclass(frozen=True, slots=True)
class RenewalHint:
    """Certificates that shall be renewed early: those with these serials, and those of an authority.

    `renew_before` is None for at once; else each one's moment is drawn between now and then.
    """

    number: int
    serials: frozenset[str] = frozenset()  # lower-case hex
    authority_id: str = ""
    renew_before: datetime | None = None

    def concerns(self, serial: str, authority_id: str) -> bool:
        """Whether a certificate with this serial, signed by this authority, is meant."""
        return serial in self.serials or bool(self.authority_id and authority_id == self.authority_id)

    def moment(self, now: datetime, uniform: float) -> datetime:
        """When to renew, for a draw from [0, 1)."""
        if self.renew_before is None or self.renew_before <= now:
            return now
        return now + uniform * (self.renew_before - now)


def check_succession(news: Bundle, held: Bundle) -> None:
    """Raise VerificationFailed unless `news` may take the place of `held`.

    A sequence only grows, and names one content (Trust Domain and Bundle 4.1.1): what goes back is
    an old copy, or another authority that speaks for the trust domain.
    """
    if news.trust_domain != held.trust_domain:
        raise VerificationFailed(
            f"a bundle of {news.trust_domain} in the place of that of {held.trust_domain}",
            rule="trust_domain_mismatch",
        )
    if news.content_hash == held.content_hash or news.sequence > held.sequence:
        return
    raise VerificationFailed(
        f"a bundle with other authorities has sequence {news.sequence}, and the one that is held has {held.sequence}",
        rule="trust_sequence_back",
        hint="write the changed bundle with a higher spiffe_sequence",
    )


def succeed(news: Trust, held: Trust | None, *, now: datetime) -> tuple[Trust, tuple[str, ...]]:
    """What to hold after `news` came in the place of `held`, and in words what is wrong with its CRLs.

    Where those are bad the ones that are held go on, as long as they are good for the new bundle.
    Raises VerificationFailed where the bundle may not follow; then all of it is refused.
    """
    if held is None:
        return news.at(now)
    check_succession(news.bundle, held.bundle)
    if news.bundle.sequence < held.bundle.sequence:  # of the same content: the sequence does not go back
        news = replace(news, bundle=held.bundle)
    trust, problems = news.at(now, before=held)
    if news.crls and not trust.crls:
        trust, _ = replace(news, crls=held.crls).at(now)
    return trust, problems


def _signed(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _crl_hash(crls: Iterable[CRL]) -> str:
    digests = sorted(hashlib.sha256(each.public_bytes(Encoding.DER)).digest() for each in crls)
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else ""
