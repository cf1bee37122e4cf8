"""A small authority for the tests of the core: root, intermediate, issuer, engine, at a fixed moment."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from citadel_py.core.bundle import Bundle
from citadel_py.core.csr import SigningRequest, create_csr, parse_csr_pem
from citadel_py.core.engine import Engine
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType, generate_key
from citadel_py.core.policy import Policy
from citadel_py.core.profile import (
    INTERMEDIATE_LIFETIME,
    ROOT_LIFETIME,
    Authority,
    Validity,
    intermediate_certificate,
    root_certificate,
)
from citadel_py.core.spiffe import TrustDomain

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@dataclass(frozen=True)
class Pki:
    """Everything that one trust domain has."""

    root: Authority
    intermediate: Authority
    bundle: Bundle

    def issuer(self, *, now: datetime = NOW) -> Issuer:
        return Issuer.activated(
            self.intermediate, (self.intermediate.certificate,), self.bundle, now=now, serial=1 << 126
        )


PkiMaker = Callable[..., Pki]


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def trust_domain() -> TrustDomain:
    return TrustDomain("example.org")


@pytest.fixture
def make_pki(trust_domain: TrustDomain) -> PkiMaker:
    def make(
        key_type: KeyType = KeyType.P256,
        *,
        root_lifetime: timedelta = ROOT_LIFETIME,
        intermediate_lifetime: timedelta = INTERMEDIATE_LIFETIME,
        start: datetime = NOW,
    ) -> Pki:
        root_key, key = generate_key(key_type), generate_key(key_type)
        root = Authority(
            root_certificate(root_key, trust_domain, Validity(start, start + root_lifetime), serial=11), root_key
        )
        validity = Validity(start, start + intermediate_lifetime)
        certificate = intermediate_certificate(key.public_key(), trust_domain, root, validity, serial=12)
        return Pki(root, Authority(certificate, key), Bundle(trust_domain, (root.certificate,)))

    return make


@pytest.fixture
def pki(make_pki: PkiMaker) -> Pki:
    return make_pki()


@pytest.fixture
def entropy() -> Callable[[int], bytes]:
    """Bytes that differ at each call and repeat in each run."""
    counter = itertools.count(1)
    return lambda count: (next(counter) << 8).to_bytes(count, "big")


@pytest.fixture
def engine(pki: Pki, trust_domain: TrustDomain, entropy: Callable[[int], bytes]) -> Engine:
    return Engine(pki.issuer(), Policy(trust_domain), entropy)


@pytest.fixture
def signing_request() -> Callable[[], SigningRequest]:
    """Makes a parsed CSR with a new key and no names."""
    return lambda: parse_csr_pem(create_csr(generate_key(KeyType.P256)))
