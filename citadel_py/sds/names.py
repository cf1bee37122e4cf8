"""Which secrets SVIDs and bundles make, under which names Envoy asks for them, and why some cannot be made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from citadel_py.core.bundle import Bundle
from citadel_py.core.context_options import ContextOptions, CrlCheck
from citadel_py.core.crl import CRL
from citadel_py.core.errors import BadInput, InvalidBundle
from citadel_py.core.keys import private_key_pem
from citadel_py.core.ports import HeldSVID
from citadel_py.core.secrets import CertificateSecret, Secret, TrustSecret
from citadel_py.core.spiffe import TrustDomain

OWN_CERTIFICATE: Final = "default"
OWN_BUNDLE: Final = "ROOTCA"
ALL_BUNDLES: Final = "ALL"

# Usable revocation lists by whose they are, of every authority of a trust domain: `core.trust.Trust.at`.
Crls: TypeAlias = Mapping[TrustDomain, tuple[CRL, ...]]


@dataclass(frozen=True, slots=True)
class Offer:
    """What there is to serve, and why there is nothing (new) under other names."""

    secrets: tuple[Secret, ...]
    withheld: Mapping[str, str] = field(default_factory=dict)


def secrets_of(
    held: HeldSVID, federated: Iterable[Bundle] = (), options: ContextOptions | None = None
) -> tuple[Secret, ...]:
    """What an SVID and its bundle make. Bundles first: a peer's trust has to be there before what it shall trust."""
    return (*trust_of(held.bundle, federated, options).secrets, *certificates_of(held))


def certificates_of(held: HeldSVID, *, is_default: bool = True) -> tuple[Secret, ...]:
    """The certificate and key under the ID's own name; and as `default`, which is one identity's on each socket."""
    chain, key = held.svid.chain_pem(), private_key_pem(held.key)
    names = (OWN_CERTIFICATE, str(held.svid.id)) if is_default else (str(held.svid.id),)
    return tuple(CertificateSecret(name, chain, key) for name in names)


def trust_of(
    own: Bundle,
    federated: Iterable[Bundle] = (),
    options: ContextOptions | None = None,
    *,
    crls: Crls | None = None,
) -> Offer:
    """The validation contexts.

    The names of the own bundle have its `options`. `ALL` and the names of `federated` bundles always take
    the SPIFFE validator: another authority must not speak for our IDs. A context that Envoy would take
    in another way than it is meant is withheld. Where revocation is checked, the lists of the own trust
    domain have to be among `crls`; those of others are used where they are known.
    """
    options, others = options or ContextOptions(), tuple(federated)
    contexts = {OWN_BUNDLE: (own,), ALL_BUNDLES: (own, *others), str(own.trust_domain.id): (own,)}
    contexts |= {str(each.trust_domain.id): (each,) for each in others}
    secrets: list[Secret] = []
    withheld: dict[str, str] = {}
    for name, bundles in contexts.items():
        try:
            is_own = name != ALL_BUNDLES and bundles == (own,)
            chosen = options if is_own else replace(options, use_spiffe_validator=True)
            secrets.append(_context(name, bundles, chosen, _lists(own, bundles, options.crl, crls or {})))
        except BadInput as error:
            withheld[name] = error.message
    return Offer(tuple(secrets), withheld)


def _context(name: str, bundles: tuple[Bundle, ...], options: ContextOptions, lists: Crls) -> TrustSecret:
    domains = [bundle.trust_domain for bundle in bundles]
    peers = tuple(peer for peer in options.peers if peer.id.trust_domain in domains)
    if options.peers and not peers:  # an empty list would admit everybody
        raise InvalidBundle(f"no peer of {' or '.join(map(str, domains))} is admitted here", rule="nobody_admitted")
    return TrustSecret(name, bundles, replace(options, peers=peers, crl=options.crl if lists else CrlCheck.OFF), lists)


def _lists(own: Bundle, bundles: tuple[Bundle, ...], check: CrlCheck, crls: Crls) -> Crls:
    if check is CrlCheck.OFF:
        return {}
    found = {each.trust_domain: crls[each.trust_domain] for each in bundles if crls.get(each.trust_domain)}
    if own in bundles and own.trust_domain not in found:
        raise InvalidBundle(f"there are no current revocation lists of {own.trust_domain}", rule="crl_missing")
    return found


def why_withheld(name: str) -> str:
    """In words, why there is nothing to send under a name that is not known."""
    for beginning, reason in _REASONS.items():
        if name.startswith(beginning):
            return reason
    return "no secret has this name (yet)"


# Names that other agents serve.
_REASONS: Final = {
    "file-cert:": "files are not served over SDS: their path would name a file of this machine",
    "file-root:": "files are not served over SDS: their path would name a file of this machine",
    "kubernetes://": "this agent does not read Secrets of Kubernetes",
    "spiffe://": "this socket has neither this identity nor this trust domain's bundle (yet)",
    "*": "secrets go only to who names them",
}
