"""Who calls in a benchmark, and with what: CSRs, tokens and certificates, all made before anything is measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from itertools import combinations

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from citadel_py.app.bench_calls import Credential
from citadel_py.core.csr import create_csr
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType, PrivateKey, PublicKey, generate_key, private_key_pem
from citadel_py.core.policy import Grant
from citadel_py.core.profile import SERIAL_BYTES, serial_number
from citadel_py.core.spiffe import SpiffeID, TrustDomain

TRUST_DOMAIN = TrustDomain("bench.example")
ISSUER = "https://issuer.bench.example"
AUDIENCE = "istio-ca"
LIFETIME = timedelta(hours=2)
USES = 50  # of one token or certificate, where it is used more than once: well within what one identity is given
STREAM_USES = 800  # of one caller on a stream, within what one caller is given at once
NODES_ASK_FOR_OTHERS = """\
trust_domain = "bench.example"

[[rule]]
name = "nodes ask for others"
who.id = "spiffe://bench.example/ns/bench/sa/*"
what.id = "spiffe://bench.example/ns/bench/sa/*"
"""
_MADE_KEYS = 24  # their 48 primes give 1128 RSA keys
_E = 65537
_KID = "bench"


@dataclass(frozen=True, slots=True)
class SentCSRs:
    """CSRs as they are sent, and the keys that the certificates must be for."""

    pems: Sequence[str]
    keys: Sequence[PublicKey]


@cache
def csrs(key_type: KeyType, id: SpiffeID | None = None) -> SentCSRs:
    """A stock of CSRs, which name an identity if there is one; they are the same for every run of this process."""
    keys = list(_keys(key_type))
    return SentCSRs([create_csr(key, id).decode() for key in keys], [key.public_key() for key in keys])


def _keys(key_type: KeyType) -> Iterator[PrivateKey]:
    made = [generate_key(key_type) for _ in range(_MADE_KEYS)]
    rsa_keys = [key.private_numbers() for key in made if isinstance(key, rsa.RSAPrivateKey)]
    return _rsa_keys([prime for key in rsa_keys for prime in (key.p, key.q)]) if rsa_keys else iter(made)


def _rsa_keys(primes: Sequence[int]) -> Iterator[PrivateKey]:
    """A key of each pair of primes: the service sees more new keys than it remembers, and few had to be made.

    It does more work for an RSA key that it sees for the first time, and most callers have new ones.
    """
    for p, q in combinations(primes, 2):
        d = pow(_E, -1, (p - 1) * (q - 1))
        exponents = (rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q))
        numbers = rsa.RSAPrivateNumbers(p, q, d, *exponents, rsa.RSAPublicNumbers(_E, p * q))
        yield numbers.private_key(unsafe_skip_rsa_key_validation=True)  # whose primes OpenSSL made


@dataclass(frozen=True)
class TokenIssuer:
    """Signs tokens as a Kubernetes cluster does: RS256, one service account each."""

    audience: str = AUDIENCE
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048), repr=False)

    def jwks(self) -> bytes:
        member = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return json.dumps({"keys": [{**member, "use": "sig", "alg": "RS256", "kid": _KID}]}).encode()

    def credentials(self, count: int, *, now: datetime) -> list[Credential]:
        """Tokens of so many different service accounts."""
        return [Credential(token=self._token(number, now)) for number in range(count)]

    def _token(self, number: int, now: datetime) -> str:
        claims = {
            "iss": ISSUER,
            "aud": [self.audience],
            "sub": f"system:serviceaccount:bench:caller-{number}",
            "iat": int(now.timestamp()),
            "exp": int((now + LIFETIME).timestamp()),
        }
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": _KID})


def certificates(issuer: Issuer, count: int, *, now: datetime) -> list[Credential]:
    """Certificates of so many different callers, as if they had been issued before."""
    return [_certificate(issuer, number, now) for number in range(count)]


def _certificate(issuer: Issuer, number: int, now: datetime) -> Credential:
    key = generate_key(KeyType.P256)
    grant = Grant(SpiffeID.mesh(TRUST_DOMAIN, "bench", f"caller-{number}"), LIFETIME)
    svid = issuer.issue(key.public_key(), grant, now=now, serial=serial_number(os.urandom(SERIAL_BYTES)))
    return Credential(chain=svid.chain_pem().decode(), key=private_key_pem(key).decode())
