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
