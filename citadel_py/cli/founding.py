"""The making of an authority: a root, new or imported, and an intermediate, proven before they are kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from citadel_py.cli.authority import new_serial
from citadel_py.cli.render import rfc3339
from citadel_py.core import profile
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import InvalidConfiguration, VerificationFailed
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType, check_authority_key, generate_key, same_public_key
from citadel_py.core.pem import UNREADABLE
from citadel_py.core.profile import Authority, Validity
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.svid_rules import spiffe_id_of_authority

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def new_root(trust_domain: TrustDomain, key_type: KeyType, lifetime: timedelta, *, now: datetime) -> Authority:
    """A root with a key of its own. RSA takes its time. Raises InvalidConfiguration."""
    key = generate_key(key_type)
    certificate = profile.root_certificate(key, trust_domain, _validity(now, now + lifetime), serial=new_serial())
    return Authority(certificate, key)


def new_intermediate(
    trust_domain: TrustDomain, root: Authority, key_type: KeyType, *, now: datetime, until: datetime
) -> Authority:
    """An intermediate under `root`. Raises InvalidConfiguration where it would outlive it."""
    key = generate_key(key_type)
    validity = _validity(now, until, not_before=root.certificate.not_valid_before_utc)
    certificate = profile.intermediate_certificate(key.public_key(), trust_domain, root, validity, serial=new_serial())
    return Authority(certificate, key)


def check_imported_root(root: Authority, trust_domain: TrustDomain, *, now: datetime) -> None:
    """Raise InvalidConfiguration or InvalidKey unless the root can stand above an authority of `trust_domain`.

    What remains is proven by `founded`: it signs, and verifies what was signed.
    """
    check_authority_key(root.key)
    certificate = root.certificate
    if not same_public_key(root.key.public_key(), certificate.public_key()):  # type: ignore[arg-type]  # compared as bytes
        raise InvalidConfiguration("the key does not belong to the root certificate", rule="imported_root_key_mismatch")
    if not _is_self_signed(certificate):
        raise InvalidConfiguration(
            "the certificate is not self-signed: many verifiers take only such a one as a root",
            rule="imported_root_not_self_signed",
        )
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise InvalidConfiguration(
            f"the root is valid from {rfc3339(certificate.not_valid_before_utc)} to "
            f"{rfc3339(certificate.not_valid_after_utc)}, not now",
            rule="imported_root_not_valid_now",
        )
    _check_trust_domain(certificate, trust_domain)


def founded(root: x509.Certificate, intermediate: Authority, trust_domain: TrustDomain, *, now: datetime) -> Bundle:
    """The bundle of a new authority that has proven to work: it signed a leaf, and that verified.

    Raises InvalidConfiguration, InvalidBundle.
    """
    bundle = Bundle(trust_domain, (root,))
    Issuer.activated(intermediate, (intermediate.certificate,), bundle, now=now, serial=new_serial())
    return bundle


def _validity(now: datetime, end: datetime, *, not_before: datetime = _LONG_AGO) -> Validity:
    """From a little before `now`, for clocks that are behind, but never before the parent's own beginning."""
    start = max(now - profile.DEFAULT_BACKDATE, not_before)
    return Validity(*(moment.astimezone(UTC).replace(microsecond=0) for moment in (start, end)))


def _is_self_signed(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def _check_trust_domain(certificate: x509.Certificate, trust_domain: TrustDomain) -> None:
    try:
        found = spiffe_id_of_authority(certificate, "the root")
    except VerificationFailed as error:
        raise InvalidConfiguration(error.message, rule="imported_root_names") from error
    if found is not None and found.trust_domain != trust_domain:
        raise InvalidConfiguration(
            f"the root is of trust domain {found.trust_domain}, not {trust_domain}", rule="imported_root_trust_domain"
        )
