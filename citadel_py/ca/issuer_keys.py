"""The public keys of a token issuer, as a value made from its JWKS document (RFC 7517).

Each key says which algorithms may be used with it, so that a token's header never chooses how it is
verified (RFC 8725 2.1, 3.1). Symmetric keys and `none` have no place here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from citadel_py.core.errors import InvalidConfiguration, Unauthenticated

VerifyingKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

MAX_DOCUMENT_BYTES = 256 * 1024
MAX_KEYS = 100
_MIN_RSA_BITS = 2048  # RFC 7518 3.3 and 3.5

_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_EC = {"secp256r1": frozenset({"ES256"}), "secp384r1": frozenset({"ES384"})}
_ED25519 = frozenset({"EdDSA"})
_STATED = (*_RSA, *_ED25519, *(algorithm for each in _EC.values() for algorithm in each))


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """One key, its name if it has one, and the only algorithms that it may verify with."""

    kid: str | None
    key: VerifyingKey
    algorithms: frozenset[str]


class UnknownKey(Unauthenticated):
    """No key of the set fits a token; a newer set may have one."""

    code = "jwt_key_unknown"


@dataclass(frozen=True, slots=True)
class KeySet:
    """All usable keys of one document, which `fingerprint` (hex SHA-256) names."""

    keys: tuple[IssuerKey, ...]
    fingerprint: str

    @classmethod
    def parse(cls, document: bytes) -> KeySet:
        """Read a JWKS. Keys of other kinds and uses are passed over (RFC 7517 section 5).

        Raises InvalidConfiguration where nothing usable is left.
        """
        keys = tuple(key for each in _members(document) if (key := _usable(each)) is not None)
        if not keys:
            raise _unreadable("it has no public key for signatures: RSA from 2048 bits, P-256, P-384 or Ed25519")
        return cls(keys, fingerprint(document))

    def find(self, *, kid: str | None, algorithm: str) -> IssuerKey:
        """The one key that a token with this header may be verified with.

        A token without `kid` needs a set in which only one key fits. Raises UnknownKey.
        """
        fitting = [each for each in self.keys if algorithm in each.algorithms and kid in (None, each.kid)]
        if len(fitting) != 1:
            raise UnknownKey(f"{len(fitting)} of {len(self.keys)} keys fit alg {algorithm!a} and kid {kid!a}")
        return fitting[0]


def fingerprint(document: bytes) -> str:
    """Names a document by its content."""
    return hashlib.sha256(document).hexdigest()


def _members(document: bytes) -> list[object]:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise _unreadable(f"it has {len(document)} bytes, at most {MAX_DOCUMENT_BYTES} are read")
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise _unreadable("it is not JSON") from error
    members = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(members, list):
        raise _unreadable("it is not an object with a list 'keys'")
    if len(members) > MAX_KEYS:
        raise _unreadable(f"it has {len(members)} keys, at most {MAX_KEYS} are read")
    return members


def _usable(member: object) -> IssuerKey | None:
    if not isinstance(member, dict) or not _is_for_signatures(member):
        return None
    stated = member.get("alg")
    if stated is not None and stated not in _STATED:
        return None
    try:
        key = jwt.PyJWK.from_dict(member).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    algorithms = _algorithms(key)
    if stated is not None:
        algorithms &= {stated}
    kid = member.get("kid")
    if not algorithms or not isinstance(kid, str | None):
        return None
    return IssuerKey(kid, key, algorithms)


def _is_for_signatures(member: Mapping[str, object]) -> bool:
    operations = member.get("key_ops")
    return member.get("use", "sig") == "sig" and (not isinstance(operations, list) or "verify" in operations)


def _algorithms(key: object) -> frozenset[str]:
    """Empty for everything that may not verify: symmetric and private keys, weak and odd ones."""
    match key:
        case rsa.RSAPublicKey() if key.key_size >= _MIN_RSA_BITS:
            return _RSA
        case ec.EllipticCurvePublicKey():
            return _EC.get(key.curve.name, frozenset())
        case ed25519.Ed25519PublicKey():
            return _ED25519
        case _:
            return frozenset()


def _unreadable(why: str) -> InvalidConfiguration:
    return InvalidConfiguration(f"the issuer's keys cannot be used: {why}", rule="jwks_unusable")
