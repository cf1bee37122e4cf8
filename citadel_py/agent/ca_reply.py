"""Is the CA's answer what was asked for? Nothing of it is used before this says so."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import VerificationFailed
from citadel_py.core.keys import PublicKey, same_public_key
from citadel_py.core.pem import load_certificates
from citadel_py.core.ports import SignedReply
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.verify import verify_svid
from citadel_py.core.x509svid import X509SVID

_MAX_ELEMENTS = 12  # the leaf, eight intermediates at most, the bundle, and some room
_CLOCK_RULES = ("leaf_expired", "leaf_not_yet_valid", "authority_expired", "authority_not_yet_valid")


def read_reply(elements: Sequence[str], *, public_key: PublicKey, id: SpiffeID, now: datetime) -> SignedReply:
    """The verified reply: `elements` are leaf, intermediates, and as the last one the whole bundle.

    Raises VerificationFailed, or BadInput for what cannot be read.
    """
    if not 2 <= len(elements) <= _MAX_ELEMENTS:
        raise VerificationFailed(
            f"the CA answered with {len(elements)} elements: a chain and a bundle are 2 to {_MAX_ELEMENTS}",
            rule="reply_shape",
        )
    *chain, bundle_pem = (element.encode() for element in elements)
    bundle = Bundle.from_pem(id.trust_domain, bundle_pem)
    return check_reply([_only_certificate(pem) for pem in chain], bundle, public_key=public_key, id=id, now=now)


def check_reply(
    chain: Sequence[x509.Certificate], bundle: Bundle, *, public_key: PublicKey, id: SpiffeID, now: datetime
) -> SignedReply:
    """What was asked for, proven by the bundle that came along. Raises VerificationFailed."""
    svid = _verify(chain, bundle, id, now)
    if not same_public_key(svid.leaf.public_key(), public_key):  # type: ignore[arg-type]  # compared as bytes
        raise VerificationFailed("the CA certified another key than was asked for", rule="reply_key_mismatch")
    return SignedReply(svid, bundle)


def _only_certificate(pem: bytes) -> x509.Certificate:
    certificates = load_certificates(pem)
    if len(certificates) > 1:
        raise VerificationFailed(
            f"an element of the CA's answer holds {len(certificates)} certificates in place of one", rule="reply_shape"
        )
    return certificates[0]


def _verify(chain: Sequence[x509.Certificate], bundle: Bundle, id: SpiffeID, now: datetime) -> X509SVID:
    try:
        return verify_svid(chain, bundle, now=now, expected=id)
    except VerificationFailed as error:
        if error.rule in _CLOCK_RULES:
            hint = f"compare the clocks: it is {now:%FT%TZ} on this machine"
            raise VerificationFailed(error.message, rule=error.rule, hint=(*error.hints, hint)) from error
        raise
