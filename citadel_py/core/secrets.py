"""What SDS serves, as values with content versions. An empty validation context cannot be built."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from citadel_py.core.bundle import Bundle
from citadel_py.core.context_options import ContextOptions, CrlCheck
from citadel_py.core.crl import CRL, crls_pem
from citadel_py.core.errors import InvalidBundle
from citadel_py.core.spiffe import TrustDomain


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

    With the SPIFFE validator each bundle verifies its own trust domain only; without it there is
    exactly one bundle (Envoy's default validator would let one domain's authorities mint another's
    IDs). Never empty: Envoy takes an empty context as 'verify nothing'. Peers are of trust domains
    that have a bundle here. `crls` are those of `core.trust.Trust` at this moment: of every authority
    of a trust domain, or Envoy refuses everybody in it.
    """

    name: str
    bundles: tuple[Bundle, ...]
    options: ContextOptions = field(default_factory=ContextOptions)
    crls: Mapping[TrustDomain, tuple[CRL, ...]] = field(default_factory=dict, hash=False, repr=False)
    version: str = field(init=False)

    def __post_init__(self) -> None:
        self._check_bundles()
        self._check_peers()
        self._check_crls()
        object.__setattr__(self, "version", _version(b"trust", *self._content()))

    def crl_pem(self, trust_domain: TrustDomain) -> bytes:
        """The revocation lists of a trust domain as PEM, one after the other; empty where there are none."""
        return crls_pem(self.crls.get(trust_domain, ()))

    def _check_bundles(self) -> None:
        if not self.bundles:
            raise InvalidBundle(f"validation context {self.name!r} without a bundle", rule="empty_validation_context")
        if len(self.bundles) > 1 and not self.options.use_spiffe_validator:
            raise InvalidBundle(
                f"validation context {self.name!r} mixes trust domains without the SPIFFE validator",
                rule="mixed_trust_domains",
            )
        if len({bundle.trust_domain for bundle in self.bundles}) < len(self.bundles):
            raise InvalidBundle(
                f"validation context {self.name!r} names a trust domain twice", rule="duplicate_trust_domain"
            )

    def _check_peers(self) -> None:
        """By the plain validator an authority here could vouch for a peer of any trust domain that is named."""
        domains = {bundle.trust_domain for bundle in self.bundles}
        for peer in self.options.peers:
            if peer.id.trust_domain not in domains:
                raise InvalidBundle(
                    f"validation context {self.name!r} admits {peer}, of whose trust domain it has no bundle",
                    rule="peer_of_other_domain",
                )

    def _check_crls(self) -> None:
        """Lists without a check would be dropped without a word, a check without lists would be none."""
        if (self.options.crl is CrlCheck.OFF) == any(self.crls.values()):
            raise InvalidBundle(
                f"no current revocation lists for validation context {self.name!r}"
                if self.options.crl is not CrlCheck.OFF
                else f"validation context {self.name!r} has revocation lists and does not check them",
                rule="crl_missing",
            )

    def _content(self) -> Iterator[bytes]:
        options = self.options
        yield b"spiffe" if options.use_spiffe_validator else b"default"
        yield self.name.encode()
        for bundle in self.bundles:
            yield from (bundle.trust_domain.name.encode(), bundle.to_pem(), self.crl_pem(bundle.trust_domain))
        yield options.crl.encode()
        yield from (str(peer).encode() for peer in options.peers)


Secret: TypeAlias = CertificateSecret | TrustSecret


def _version(*parts: bytes) -> str:
    """Hash of the content: the same on every replica and after a restart."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:32]
