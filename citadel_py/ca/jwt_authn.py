"""Callers that show a JWT of one configured issuer, such as a Kubernetes service account token.

The configured key set decides which keys and algorithms count. What a token's header offers in
their place (`jwk`, `jku`, `x5c`, `x5u`) is never looked at (RFC 8725 3.10).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

import jwt

from citadel_py.ca.authn import Attested, CallCredentials
from citadel_py.ca.cache import BoundedCache
from citadel_py.ca.issuer_keys import IssuerKey, KeySet, UnknownKey
from citadel_py.core.errors import InvalidSpiffeID, Unauthenticated
from citadel_py.core.join_token import claims_to_be_join_token
from citadel_py.core.policy import Caller, Method
from citadel_py.core.spiffe import SpiffeID, TrustDomain

CACHE_SIZE = 10_000
CACHE_TTL = timedelta(minutes=1)
_REQUIRED = ["iss", "sub", "aud", "exp"]
_LAST_MOMENT = 253_370_764_800  # the year 9999 begins: a datetime can hold it, and skew on top
_MAX_SHOWN = 300


class KeySource(Protocol):
    """Where the issuer's keys are kept current."""

    @property
    def keys(self) -> KeySet:
        """The keys of now. Raises NotReady."""
        ...

    async def catch_up(self) -> None:
        """Look for newer keys, unless that was done a moment ago."""
        ...


@dataclass(frozen=True, slots=True)
class JWTRules:
    """What a token must say. `clock_skew` is how far the issuer's clock may be off, in both directions."""

    issuer: str
    audience: str
    trust_domain: TrustDomain
    clock_skew: timedelta = timedelta(seconds=10)


class JWTAuthenticator:
    """Verifies tokens locally; a verified one is remembered for a short time, by its SHA-256."""

    def __init__(self, rules: JWTRules, source: KeySource) -> None:
        self._rules = rules
        self._source = source
        self._verified: BoundedCache[tuple[bytes, str], Caller] = BoundedCache(CACHE_SIZE)

    async def attest(self, credentials: CallCredentials, *, now: datetime) -> Attested | None:
        """See Authenticator."""
        token = credentials.bearer
        if token is None or claims_to_be_join_token(token):
            return None
        digest = hashlib.sha256(token.encode()).digest()
        caller = self._verified.get((digest, self._source.keys.fingerprint), now=now)
        return Attested(caller or await self._verify(token, digest, now))

    async def _verify(self, token: str, digest: bytes, now: datetime) -> Caller:
        key = await self._key_for(token)
        claims = _decode(token, key, self._rules)
        ends_at = _check_times(claims, now, self._rules.clock_skew)
        subject = claims["sub"]
        own_id = service_account_id(subject, self._rules.trust_domain)
        caller = Caller(Method.JWT, subject, own_id, issuer=self._rules.issuer)
        self._verified.put((digest, self._source.keys.fingerprint), caller, ends_at=min(ends_at, now + CACHE_TTL))
        return caller

    async def _key_for(self, token: str) -> IssuerKey:
        kid, algorithm = _read_header(token.partition(".")[0])
        try:
            return self._source.keys.find(kid=kid, algorithm=algorithm)
        except UnknownKey:
            await self._source.catch_up()
        return self._source.keys.find(kid=kid, algorithm=algorithm)


def service_account_id(subject: str, trust_domain: TrustDomain) -> SpiffeID:
    """`system:serviceaccount:NS:SA` as an ID of the mesh form. Raises Unauthenticated."""
    parts = subject.split(":")
    if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"]:
        raise _refused(f"sub {subject[:_MAX_SHOWN]!a} is no system:serviceaccount:NAMESPACE:NAME", "jwt_subject")
    try:
        return SpiffeID.mesh(trust_domain, parts[2], parts[3])
    except InvalidSpiffeID as error:
        raise _refused(f"sub {subject[:_MAX_SHOWN]!a}: {error}", "jwt_subject") from error


@lru_cache(maxsize=64)  # all tokens that one key has signed begin with the same one
def _read_header(header_part: str) -> tuple[str | None, str]:
    """`kid` and `alg`, to choose among the keys that are trusted already."""
    try:
        header = jwt.get_unverified_header(f"{header_part}..")
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise _refused(f"it cannot be read: {_shown(error)}", "jwt_malformed") from error
    if "crit" in header or "b64" in header:  # RFC 7515 4.1.11: what must be understood and is not
        raise _refused("its header asks for extensions that are not known here", "jwt_critical_header")
    kid, algorithm = header.get("kid"), header.get("alg")
    if not isinstance(kid, str | None) or not isinstance(algorithm, str):
        raise _refused("kid or alg in its header is no text", "jwt_malformed")
    return kid, algorithm


def _decode(token: str, key: IssuerKey, rules: JWTRules) -> Mapping[str, str]:
    """The claims, once the signature, the issuer and the audience are right. Times are for the caller to check."""
    try:
        claims = jwt.decode(
            token,
            key.key,
            algorithms=sorted(key.algorithms),
            audience=rules.audience,
            issuer=rules.issuer,
            options={"require": _REQUIRED, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise _refused(_shown(error), _RULES.get(type(error), "jwt_invalid")) from error
    return claims


_RULES: Mapping[type[Exception], str] = {
    jwt.InvalidSignatureError: "jwt_signature",
    jwt.InvalidAudienceError: "jwt_audience",
    jwt.InvalidIssuerError: "jwt_issuer",
    jwt.MissingRequiredClaimError: "jwt_claim_missing",
    jwt.InvalidAlgorithmError: "jwt_algorithm",
    jwt.DecodeError: "jwt_malformed",
}


def _check_times(claims: Mapping[str, object], now: datetime, skew: timedelta) -> datetime:
    """The moment at which the token ends, skew included (RFC 7519 4.1.4 to 4.1.6). Raises Unauthenticated."""
    ends_at = _moment(claims, "exp") + skew
    if now >= ends_at:
        raise _refused(f"it expired at {ends_at - skew:%FT%TZ}, and it is {now:%FT%TZ}", "jwt_expired")
    for name in ("nbf", "iat"):
        if name in claims and _moment(claims, name) - skew > now:
            raise _refused(f"its {name} {_moment(claims, name):%FT%TZ} is ahead of {now:%FT%TZ}", "jwt_not_yet_valid")
    return ends_at


def _moment(claims: Mapping[str, object], name: str) -> datetime:
    value = claims[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LAST_MOMENT:
        raise _refused(f"its {name} is no moment: {ascii(value)[:_MAX_SHOWN]}", "jwt_malformed")
    return datetime.fromtimestamp(value, UTC)


def _shown(error: Exception) -> str:
    return ascii(str(error)[:_MAX_SHOWN]).strip("'\"")


def _refused(why: str, rule: str) -> Unauthenticated:
    return Unauthenticated(f"bearer token: {why}", rule=rule)
