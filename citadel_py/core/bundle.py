"""Trust bundles: the authorities that verify one trust domain, and sets of them that stay apart.

Values only. Whether a chain verifies against a bundle is decided in verify.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import Store

from citadel_py.core import jwks
from citadel_py.core.errors import InvalidBundle, InvalidCertificate, InvalidSpiffeID
from citadel_py.core.pem import certificates_pem, check_readable, load_certificates
from citadel_py.core.spiffe import TrustDomain

_MAX_SEQUENCE = (1 << 63) - 1  # Trust Domain and Bundle 4.1.1: readers hold it in 64 bits
_MAX_REFRESH_HINT_S = 10 * 365 * 86400
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True)
class Bundle:
    """The authorities of one trust domain, in their order and without duplicates.

    `sequence` changes with the content and only grows. Raises InvalidBundle: `bundle_empty`,
    `bundle_not_ca`, `bundle_key_kind`, `bundle_sequence`, `bundle_refresh_hint`, or the rule of a certificate
    that cannot be read.
    """

    trust_domain: TrustDomain
    authorities: tuple[x509.Certificate, ...]
    sequence: int = 1
    refresh_hint: timedelta | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "authorities", tuple(dict.fromkeys(self.authorities)))
        if not self.authorities:
            raise InvalidBundle(f"the bundle of {self.trust_domain} holds no X.509 authority", rule="bundle_empty")
        for certificate in self.authorities:
            _check_authority(certificate, self.trust_domain)
        if not 0 <= self.sequence <= _MAX_SEQUENCE:
            raise InvalidBundle(f"sequence {self.sequence} is not within 0 and 2^63 - 1", rule="bundle_sequence")
        if self.refresh_hint is not None and not 0 < self.refresh_hint.total_seconds() <= _MAX_REFRESH_HINT_S:
            raise InvalidBundle("the refresh hint is not within 1 second and 10 years", rule="bundle_refresh_hint")

    @classmethod
    def from_pem(cls, trust_domain: TrustDomain, pem: bytes, *, sequence: int = 1) -> Bundle:
        """Read PEM certificates. Raises InvalidBundle, with the rule of what was found in the text."""
        try:
            return cls(trust_domain, load_certificates(pem), sequence)
        except InvalidCertificate as error:
            raise InvalidBundle(error.message, rule=error.rule, hint=error.hints) from error

    @classmethod
    def from_jwks(cls, trust_domain: TrustDomain, json: bytes) -> Bundle:
        """Read the SPIFFE bundle format. Without `spiffe_sequence` the sequence is 0. Raises InvalidBundle."""
        return cls.from_object(trust_domain, jwks.read_json(json))

    @classmethod
    def from_object(cls, trust_domain: TrustDomain, value: dict[str, Any]) -> Bundle:
        """Read the SPIFFE bundle format from JSON that was parsed already. Raises InvalidBundle."""
        sequence = _integer(value, "spiffe_sequence", _MAX_SEQUENCE)
        hint = _integer(value, "spiffe_refresh_hint", _MAX_REFRESH_HINT_S)
        authorities = tuple(jwks.read_authorities(value.get("keys")))
        return cls(trust_domain, authorities, sequence or 0, timedelta(seconds=hint) if hint else None)

    @cached_property
    def content_hash(self) -> str:
        """Hex SHA-256 over the certificates; equal for equal authorities, whatever their order."""
        digests = sorted(hashlib.sha256(each.public_bytes(Encoding.DER)).digest() for each in self.authorities)
        return hashlib.sha256(b"".join(digests)).hexdigest()

    @cached_property
    def store(self) -> Store:
        """The authorities as the library's path validation takes them."""
        return Store(list(self.authorities))

    def with_authorities(self, authorities: Iterable[x509.Certificate]) -> Bundle:
        """The same bundle with other authorities; the sequence grows by one only if the content changed."""
        changed = replace(self, authorities=tuple(authorities), sequence=self.sequence + 1)
        return self if changed.content_hash == self.content_hash else changed

    def to_pem(self) -> bytes:
        """Canonical PEM blocks in the bundle's order."""
        return certificates_pem(self.authorities)

    def to_jwks(self) -> bytes:
        """The SPIFFE bundle format, as stable text (Trust Domain and Bundle, section 4)."""
        return jwks.write_json(self.to_object())

    def to_object(self) -> dict[str, Any]:
        """The SPIFFE bundle format as an object for JSON."""
        value: dict[str, Any] = {
            "keys": [jwks.jwk(certificate) for certificate in self.authorities],
            "spiffe_sequence": self.sequence,
        }
        if self.refresh_hint is not None:
            value["spiffe_refresh_hint"] = int(self.refresh_hint.total_seconds())
        return value


@dataclass(frozen=True)
class BundleSet:
    """At most one bundle per trust domain. Raises InvalidBundle: `bundle_duplicate`."""

    bundles: tuple[Bundle, ...] = ()

    def __post_init__(self) -> None:
        if len(self._by_trust_domain) != len(self.bundles):
            raise InvalidBundle("two bundles for one trust domain", rule="bundle_duplicate")

    @cached_property
    def _by_trust_domain(self) -> dict[TrustDomain, Bundle]:
        return {bundle.trust_domain: bundle for bundle in self.bundles}

    def get(self, trust_domain: TrustDomain) -> Bundle | None:
        """The bundle of exactly this trust domain."""
        return self._by_trust_domain.get(trust_domain)

    def __iter__(self) -> Iterator[Bundle]:
        return iter(self.bundles)

    def __len__(self) -> int:
        return len(self.bundles)

    @classmethod
    def from_json(cls, json: bytes) -> BundleSet:
        """Read `{"trust_domains": {"example.org": {...bundle...}}}`. Raises InvalidBundle.

        One bundle that is broken refuses them all: the caller keeps what it had.
        """
        named = jwks.read_json(json).get("trust_domains")
        if not isinstance(named, dict):
            raise InvalidBundle("'trust_domains' is not an object", rule="bundle_map")
        return cls(tuple(_named_bundle(name, value) for name, value in named.items()))

    def to_json(self) -> bytes:
        """The bundle-map form, as stable text."""
        return jwks.write_json({"trust_domains": {each.trust_domain.name: each.to_object() for each in self.bundles}})


def _named_bundle(name: str, value: object) -> Bundle:
    try:
        trust_domain = TrustDomain(name)
    except InvalidSpiffeID as error:
        raise InvalidBundle(error.message, rule=error.rule) from error
    if not isinstance(value, dict):
        raise InvalidBundle(f"the bundle of {name} is not an object", rule="bundle_map")
    return Bundle.from_object(trust_domain, value)


def _check_authority(certificate: x509.Certificate, trust_domain: TrustDomain) -> None:
    try:
        check_readable(certificate)
    except InvalidCertificate as error:
        raise InvalidBundle(f"an authority of {trust_domain}: {error.message}", rule=error.rule) from error
    key = certificate.public_key()
    shown = ascii(certificate.subject.rfc4514_string()[:120])
    if not _may_sign_certificates(certificate):
        raise InvalidBundle(f"{shown} in the bundle of {trust_domain} is not a CA certificate", rule="bundle_not_ca")
    is_known_curve = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES
    if not isinstance(key, rsa.RSAPublicKey) and not is_known_curve:
        raise InvalidBundle(
            f"the key of {shown} in the bundle of {trust_domain} is neither RSA nor on P-256, P-384 or P-521",
            rule="bundle_key_kind",
            hint="take it out: Envoy and others refuse a bundle that holds such a key",
        )


def _may_sign_certificates(certificate: x509.Certificate) -> bool:
    """CA:TRUE, and keyCertSign where key usage is stated: many roots state none (RFC 5280 6.1.4 k, n)."""
    extensions = {each.oid: each.value for each in certificate.extensions}
    constraints = extensions.get(x509.BasicConstraints.oid)
    usage = extensions.get(x509.KeyUsage.oid)
    is_ca = isinstance(constraints, x509.BasicConstraints) and constraints.ca
    return is_ca and (not isinstance(usage, x509.KeyUsage) or usage.key_cert_sign)


def _integer(value: dict[str, Any], name: str, maximum: int) -> int | None:
    number = value.get(name)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= maximum:
        raise InvalidBundle(f"'{name}' is not a whole number within 0 and {maximum}", rule="jwks_number")
    return number
