"""Does a chain verify as an X509-SVID? The one answer for issuer, service, agent and CLI.

The order: bounds, the leaf by itself (svid_rules.py), its trust domain, the path, the ID that was
expected. Path validation (RFC 5280 section 6) is the library's; only the bundle of the leaf's own
trust domain is ever asked, never a union. Why a path failed is told by diagnosis.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, VerificationError

from citadel_py.core.bundle import Bundle, BundleSet
from citadel_py.core.diagnosis import FailedPath
from citadel_py.core.errors import VerificationFailed
from citadel_py.core.pem import UNREADABLE
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.svid_rules import (
    check_intermediate,
    check_leaf,
    check_signing_limits,
    describe,
    spiffe_id_of_authority,
)
from citadel_py.core.x509svid import X509SVID

__all__ = ["check_leaf", "verify_in", "verify_svid"]

MAX_CHAIN_CERTIFICATES = 10
MAX_CHAIN_BYTES = 1 << 16
_MAX_INTERMEDIATES = 8


def verify_svid(
    chain: Sequence[x509.Certificate], bundle: Bundle, *, now: datetime, expected: SpiffeID | None = None
) -> X509SVID:
    """The SVID that `chain` is, verified against `bundle` at `now` (aware).

    `chain` is what a peer presents: the leaf, then intermediates in any order; a root among them is
    tolerated and never trusted for being there. The SVID's chain is the path that was found, without
    the bundle's authority. Raises VerificationFailed; `rule` names what is wrong.
    """
    _check_bounds(chain)
    return _verify(chain, check_leaf(chain[0]), bundle, now=now, expected=expected)


def verify_in(
    chain: Sequence[x509.Certificate], bundles: BundleSet, *, now: datetime, expected: SpiffeID | None = None
) -> X509SVID:
    """As verify_svid, with the bundle of the leaf's trust domain. Raises VerificationFailed."""
    _check_bounds(chain)
    leaf_id = check_leaf(chain[0])
    bundle = bundles.get(leaf_id.trust_domain)
    if bundle is None:
        raise VerificationFailed(
            f"no bundle of trust domain {leaf_id.trust_domain} is known, so {leaf_id} cannot be verified",
            rule="trust_domain_unknown",
        )
    return _verify(chain, leaf_id, bundle, now=now, expected=expected)


def _verify(
    chain: Sequence[x509.Certificate], leaf_id: SpiffeID, bundle: Bundle, *, now: datetime, expected: SpiffeID | None
) -> X509SVID:
    if leaf_id.trust_domain != bundle.trust_domain:
        raise VerificationFailed(
            f"{leaf_id} is of trust domain {leaf_id.trust_domain}, the bundle of {bundle.trust_domain}",
            rule="trust_domain_mismatch",
        )
    *path, anchor = _validated_path(chain, bundle, _instant(now))
    _check_anchor(anchor, path, bundle.trust_domain)
    if expected is not None and leaf_id != expected:
        raise VerificationFailed(f"the certificate is of {leaf_id}, expected was {expected}", rule="unexpected_id")
    return X509SVID(leaf_id, tuple(path))


def _check_bounds(chain: Sequence[x509.Certificate]) -> None:
    if not chain:
        raise VerificationFailed("no certificate was presented", rule="chain_empty")
    if len(chain) > MAX_CHAIN_CERTIFICATES:
        raise VerificationFailed(
            f"{len(chain)} certificates were presented, at most {MAX_CHAIN_CERTIFICATES} are read",
            rule="chain_too_long",
        )
    if sum(len(certificate.tbs_certificate_bytes) for certificate in chain) > MAX_CHAIN_BYTES:
        raise VerificationFailed(f"a chain of more than {MAX_CHAIN_BYTES} bytes was presented", rule="chain_too_large")


def _instant(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise ValueError("verification needs an aware time")
    return now.astimezone(UTC).replace(microsecond=0)  # certificates know whole seconds, both ends included


def _validated_path(chain: Sequence[x509.Certificate], bundle: Bundle, now: datetime) -> list[x509.Certificate]:
    """Leaf first, the bundle's authority last. Raises VerificationFailed."""
    leaf, *presented = dict.fromkeys(chain)
    builder = PolicyBuilder().store(bundle.store).time(now).max_chain_depth(_MAX_INTERMEDIATES)
    verifier = builder.extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY).build_client_verifier()
    fit = [certificate for certificate in presented if _is_fit(certificate, bundle.trust_domain)]
    try:
        return verifier.verify(leaf, fit).chain
    except (VerificationError, *UNREADABLE) as error:
        raise FailedPath(leaf, presented, bundle, now).explain(str(error)) from error


def _is_fit(certificate: x509.Certificate, trust_domain: TrustDomain) -> bool:
    """Whether a presented certificate may be part of a path; one that may not is as good as absent."""
    try:
        check_intermediate(certificate, trust_domain)
    except VerificationFailed:
        return False
    return True


def _check_anchor(anchor: x509.Certificate, path: Sequence[x509.Certificate], trust_domain: TrustDomain) -> None:
    """X509-SVID 3.2, for the bundle's own authority at the top of the path.

    It may be of another trust domain, or of none, where an authority of ours stands below it: that
    is chained trust (SPIFFE-ID 3.1). Otherwise it would itself speak for ours.
    """
    what = describe(anchor, "root")
    check_signing_limits(anchor, what)
    anchor_id = spiffe_id_of_authority(anchor, what)
    if anchor_id is None or anchor_id.trust_domain == trust_domain:
        return
    if not any(spiffe_id_of_authority(certificate, what) for certificate in path[1:]):
        raise VerificationFailed(
            f"{what} belongs to trust domain {anchor_id.trust_domain} and signs for {trust_domain} directly",
            rule="authority_trust_domain",
        )


def _require_ca(_policy: Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("not a CA certificate")


# The leaf has been checked in full by check_leaf, and the library refuses critical extensions that
# it does not know under every policy. Its own rules for leaves are those of the Web PKI: they want an
# authority key identifier, and refuse a critical SAN beside a subject.
_LEAF_POLICY = ExtensionPolicy.permit_all()

# Roots made by hand state no key usage, have basic constraints that are not critical, or point at
# their parent in other ways. Intermediates were held to more by check_intermediate, and a Bundle
# holds only certificates that may sign others.
_CA_POLICY = (
    ExtensionPolicy.webpki_defaults_ca()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _require_ca)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, None)
    .may_be_present(x509.AuthorityKeyIdentifier, Criticality.NON_CRITICAL, None)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
)
