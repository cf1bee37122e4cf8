"""Why a chain did not verify, in words for the person who has to mend it.

The decision has been made by then, and nothing here can change it: this file walks the chain from
the leaf upwards once more, and names the first thing that it finds wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa

from citadel_py.core.bundle import Bundle
from citadel_py.core.duration import format_duration
from citadel_py.core.errors import VerificationFailed
from citadel_py.core.pem import UNREADABLE
from citadel_py.core.svid_rules import check_intermediate, check_signing_limits, describe, find, show_name

_ACCEPTED_HASHES = ("sha256", "sha384", "sha512")


@dataclass(frozen=True, slots=True)
class FailedPath:
    """What was presented, what it was verified against, and when (aware UTC, whole seconds)."""

    leaf: x509.Certificate
    presented: Sequence[x509.Certificate]
    bundle: Bundle
    now: datetime

    def explain(self, library_reason: str) -> VerificationFailed:
        """The first thing wrong on the way up; the library's own words where nothing is found."""
        path = [self.leaf]
        try:
            _check_validity(self.leaf, "leaf", self.now)
            while path[-1] not in self.bundle.authorities:
                path.append(self._issuer_of(path))
        except VerificationFailed as found:
            return found
        except UNREADABLE as error:
            return VerificationFailed(
                f"a certificate cannot be read: {str(error)[:200]!a}", rule="certificate_unreadable"
            )
        return _by_the_library(path, library_reason)

    def _issuer_of(self, path: Sequence[x509.Certificate]) -> x509.Certificate:
        """The issuer of the last of `path`, which is none of them. Raises VerificationFailed where none fits."""
        current = path[-1]
        what = "the leaf" if current is self.leaf else self._describe(current)
        _check_signature_algorithm(current, what)
        candidates = (*self.bundle.authorities, *self.presented)
        named = [each for each in candidates if each.subject == current.issuer and each not in path]
        if not named:
            raise self._unknown_issuer(current, what)
        problem = None
        for issuer in named:
            try:
                _check_signature(issuer, current, what)
                self._check_signer(issuer, authorities_below=len(path) - 1)
            except VerificationFailed as error:
                problem = error if problem is None or problem.rule == "signature_invalid" else problem
            else:
                return issuer
        raise problem or self._unknown_issuer(current, what)

    def _check_signer(self, signer: x509.Certificate, *, authorities_below: int) -> None:
        what = self._describe(signer)
        _check_validity(signer, what, self.now)
        if signer in self.bundle.authorities:
            check_signing_limits(signer, what)
        elif signer.subject != signer.issuer:  # a root that was presented is unknown, whatever else it is
            check_intermediate(signer, self.bundle.trust_domain)
        key = signer.public_key()
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
            raise VerificationFailed(f"{what} has an RSA key of {key.key_size} bits", rule="key_strength")
        constraints = find(signer.extensions, x509.BasicConstraints)
        limit = constraints.value.path_length if constraints else None
        if limit is not None and authorities_below > limit:
            raise VerificationFailed(
                f"{what} allows {limit} authorities below itself, here are {authorities_below}", rule="path_length"
            )

    def _unknown_issuer(self, current: x509.Certificate, what: str) -> VerificationFailed:
        trust_domain, issuer = self.bundle.trust_domain, show_name(current.issuer)
        if current is self.leaf:
            return VerificationFailed(
                f"the issuer of the leaf, {issuer}{_key_id(current)}, is neither in the chain "
                f"nor in the bundle of {trust_domain}",
                rule="issuer_missing",
                hint=(
                    "if it is an intermediate: present it along with the leaf",
                    "if it is a root: the bundle is of another authority, or older than a rotation",
                ),
            )
        ends = "the self-signed " + what if current.issuer == current.subject else f"{what} under {issuer}"
        return VerificationFailed(
            f"the chain ends at {ends}{_key_id(current)}, signed by no authority in the bundle of {trust_domain}",
            rule="unknown_authority",
            hint="the bundle is of another authority, or older than a rotation",
        )

    def _describe(self, certificate: x509.Certificate) -> str:
        if certificate.subject == certificate.issuer:
            return describe(certificate, "root")
        return describe(certificate, "authority" if certificate in self.bundle.authorities else "intermediate")


def _check_validity(certificate: x509.Certificate, what: str, now: datetime) -> None:
    prefix = "leaf" if what == "leaf" else "authority"
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > last:
        raise VerificationFailed(
            f"{what} expired {last:%Y-%m-%dT%H:%M:%SZ}, {format_duration(now - last)} ago", rule=f"{prefix}_expired"
        )
    if now < first:
        raise VerificationFailed(
            f"{what} is not valid before {first:%Y-%m-%dT%H:%M:%SZ}, in {format_duration(first - now)}",
            rule=f"{prefix}_not_yet_valid",
            hint="compare the clocks of this machine and of the one that issued it",
        )


def _check_signature_algorithm(certificate: x509.Certificate, what: str) -> None:
    algorithm = certificate.signature_hash_algorithm
    if algorithm is None or algorithm.name not in _ACCEPTED_HASHES:
        shown = "Ed25519 or alike" if algorithm is None else algorithm.name
        raise VerificationFailed(
            f"the signature of {what} uses {shown}; ECDSA and RSA with SHA-256, SHA-384 or SHA-512 are accepted",
            rule="signature_algorithm",
        )


def _check_signature(issuer: x509.Certificate, certificate: x509.Certificate, what: str) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature) as error:
        raise VerificationFailed(
            f"the signature of {what} does not verify with the key of {show_name(issuer.subject)} that is known here: "
            "the certificate was changed, or the authority of that name has another key",
            rule="signature_invalid",
        ) from error


def _key_id(certificate: x509.Certificate) -> str:
    extension = find(certificate.extensions, x509.AuthorityKeyIdentifier)
    if extension is None or extension.value.key_identifier is None:
        return ""
    return f" (key id {extension.value.key_identifier.hex()})"


def _by_the_library(path: Iterable[x509.Certificate], reason: str) -> VerificationFailed:
    reason = ascii(reason.partition(" (encountered processing")[0][:200])
    for certificate in path:
        if find(certificate.extensions, x509.NameConstraints) is not None:
            return VerificationFailed(
                f"a name in the chain breaks the name constraints of {show_name(certificate.subject)}: {reason}",
                rule="name_constraints",
            )
    return VerificationFailed(f"the chain does not verify: {reason}", rule="path_invalid")
