"""What SDS serves, as values with content versions. An empty validation context cannot be built."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TypeAlias

from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import InvalidBundle


@dataclass(frozen=True, slots=True)
class CertificateSecret:
    """A TLS certificate under an Envoy resource name: chain without the root, and its key."""

    name: str
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    version: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.chain_pem or not self.key_pem:
            raise InvalidBundle(f"secret {self.name!r} has no chain or no key", rule="empty_secret")
        object.__setattr__(self, "version", _version(b"certificate", self.name.encode(), self.chain_pem, self.key_pem))


@dataclass(frozen=True, slots=True)
class TrustSecret:
    """A validation context under an Envoy resource name.

    With `use_spiffe_validator` each bundle verifies its own trust domain only; without it there
    is exactly one bundle (Envoy's default validator would let one domain's authorities mint
    another's IDs). Never empty: Envoy takes an empty context as 'verify nothing'.
    """

    name: str
    bundles: tuple[Bundle, ...]
    use_spiffe_validator: bool = False
    version: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.bundles:
            raise InvalidBundle(f"validation context {self.name!r} without a bundle", rule="empty_validation_context")
        if len(self.bundles) > 1 and not self.use_spiffe_validator:
            raise InvalidBundle(
                f"validation context {self.name!r} mixes trust domains without the SPIFFE validator",
                rule="mixed_trust_domains",
            )
        if len({bundle.trust_domain for bundle in self.bundles}) < len(self.bundles):
            raise InvalidBundle(
                f"validation context {self.name!r} names a trust domain twice", rule="duplicate_trust_domain"
            )
        kind = b"spiffe" if self.use_spiffe_validator else b"default"
        parts = (part for bundle in self.bundles for part in (bundle.trust_domain.name.encode(), bundle.to_pem()))
        object.__setattr__(self, "version", _version(b"trust", kind, self.name.encode(), *parts))


Secret: TypeAlias = CertificateSecret | TrustSecret


def _version(*parts: bytes) -> str:
    """Hash of the content: the same on every replica and after a restart."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:32]
