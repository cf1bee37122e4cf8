"""Which secrets an SVID makes, and under which names Envoy asks for them.

One socket serves one identity, so `default` is that identity's own certificate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from citadel_py.core.bundle import Bundle
from citadel_py.core.keys import private_key_pem
from citadel_py.core.ports import HeldSVID
from citadel_py.core.secrets import CertificateSecret, Secret, TrustSecret

OWN_CERTIFICATE: Final = "default"
OWN_BUNDLE: Final = "ROOTCA"
ALL_BUNDLES: Final = "ALL"


def secrets_of(held: HeldSVID, federated: Iterable[Bundle] = (), *, has_validator: bool = False) -> tuple[Secret, ...]:
    """Bundles first: a peer's trust has to be there before what it shall trust.

    `has_validator` makes Envoy verify with its SPIFFE validator under the names of the own bundle too.
    `ALL` and the names of `federated` bundles always do: another authority must not speak for our IDs.
    """
    chain, key = held.svid.chain_pem(), private_key_pem(held.key)
    own, others = (held.bundle,), tuple(federated)
    return (
        TrustSecret(OWN_BUNDLE, own, use_spiffe_validator=has_validator),
        TrustSecret(ALL_BUNDLES, (*own, *others), use_spiffe_validator=True),
        TrustSecret(str(held.bundle.trust_domain.id), own, use_spiffe_validator=has_validator),
        *(TrustSecret(str(each.trust_domain.id), (each,), use_spiffe_validator=True) for each in others),
        CertificateSecret(OWN_CERTIFICATE, chain, key),
        CertificateSecret(str(held.svid.id), chain, key),
    )


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
