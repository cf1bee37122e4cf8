"""Callers that show a certificate of our own trust domain: agents that renew.

TLS checked it once, when the connection began; connections outlive certificates and bundles, so it
is checked again at every call, by the same function that everything else here trusts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta

from citadel_py.ca.authn import Attested, CallCredentials
from citadel_py.ca.cache import BoundedCache
from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import CRL, revoked_in
from citadel_py.core.errors import CitadelError, Unauthenticated
from citadel_py.core.pem import load_certificates
from citadel_py.core.policy import Caller, Method
from citadel_py.core.profile import Validity
from citadel_py.core.verify import verify_svid
from citadel_py.core.x509svid import X509SVID

CACHE_SIZE = 10_000
RECHECK_AFTER = timedelta(minutes=5)


class CertificateAuthenticator:
    """Verifies the peer's chain against the bundle and the revocation lists in use at the moment of the call."""

    def __init__(self, bundle: Callable[[], Bundle], crls: Callable[[], tuple[CRL, ...]] = tuple) -> None:
        self._bundle = bundle
        self._crls = crls
        self._looked_up: tuple[CRL, ...] = ()  # the lists that what is in the cache was looked up in
        self._verified: BoundedCache[tuple[bytes, str], Attested] = BoundedCache(CACHE_SIZE)

    async def attest(self, credentials: CallCredentials, *, now: datetime) -> Attested | None:
        """See Authenticator."""
        if credentials.peer_chain is None:
            return None
        bundle, crls = self._bundle(), self._crls()
        if crls is not self._looked_up:
            self._verified, self._looked_up = BoundedCache(CACHE_SIZE), crls
        key = (hashlib.sha256(credentials.peer_chain).digest(), bundle.content_hash)
        attested = self._verified.get(key, now=now)
        if attested is None:
            svid = _verify(credentials.peer_chain, bundle, now)
            _check_not_revoked(svid, crls)
            held = Validity(svid.not_before, svid.not_after)
            attested = Attested(Caller(Method.MTLS, str(svid.id), svid.id), held=held)
            self._verified.put(key, attested, ends_at=min(_ends_at(svid), now + RECHECK_AFTER))
        return attested


def _verify(chain_pem: bytes, bundle: Bundle, now: datetime) -> X509SVID:
    try:
        return verify_svid(load_certificates(chain_pem), bundle, now=now)
    except CitadelError as error:  # whatever is wrong with it, nobody is authenticated by it
        raise Unauthenticated(f"client certificate: {error}", rule=error.rule) from error


def _check_not_revoked(svid: X509SVID, crls: tuple[CRL, ...]) -> None:
    """Who holds a revoked certificate must not get another one for it."""
    revoked = revoked_in(svid.chain, crls)
    if revoked is not None:
        raise Unauthenticated(
            f"client certificate: {revoked.serial_number:032x} in the path of {svid.id} was revoked",
            rule="certificate_revoked",
        )


def _ends_at(svid: X509SVID) -> datetime:
    return min(certificate.not_valid_after_utc for certificate in svid.chain)
