"""Which secrets an SVID makes, and under which names Envoy asks for them.

One socket serves one identity, so `default` is that identity's own certificate.
"""

from __future__ import annotations

from typing import Final

from citadel_py.core.keys import private_key_pem
from citadel_py.core.ports import HeldSVID
from citadel_py.core.secrets import CertificateSecret, Secret, TrustSecret

OWN_CERTIFICATE: Final = "default"
OWN_BUNDLE: Final = "ROOTCA"
ALL_BUNDLES: Final = "ALL"


def secrets_of(held: HeldSVID) -> tuple[Secret, ...]:
    """Bundles first: a peer's trust has to be there before what it shall trust."""
    chain, key = held.svid.chain_pem(), private_key_pem(held.key)
    bundles = (held.bundle,)
    return (
        TrustSecret(OWN_BUNDLE, bundles),
        TrustSecret(ALL_BUNDLES, bundles, use_spiffe_validator=True),
        TrustSecret(str(held.bundle.trust_domain.id), bundles),
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
