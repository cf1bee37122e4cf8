"""What the tests of the store keep: an authority, SVIDs, ledger entries. Times are fixed."""

from __future__ import annotations

import itertools
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from citadel_py.core.bundle import Bundle
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType, PrivateKey, generate_key
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.policy import Grant
from citadel_py.core.ports import HeldSVID
from citadel_py.core.profile import (
    INTERMEDIATE_LIFETIME,
    ROOT_LIFETIME,
    Authority,
    Validity,
    intermediate_certificate,
    root_certificate,
)
from citadel_py.core.spiffe import SpiffeID, TrustDomain

NOW = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
WEB = SpiffeID.parse("spiffe://example.org/ns/default/sa/web")

_serials = itertools.count(0x5EED0001)


@dataclass(frozen=True)
class Pki:
    """A root, an intermediate under it, and the bundle."""

    root: Authority
    intermediate: Authority
    bundle: Bundle


def new_pki(name: str = "example.org") -> Pki:
    trust_domain = TrustDomain(name)
    start = NOW.replace(microsecond=0)
    root_key, key = generate_key(KeyType.P256), generate_key(KeyType.P256)
    validity = Validity(start, start + ROOT_LIFETIME)
    root = Authority(root_certificate(root_key, trust_domain, validity, serial=next(_serials)), root_key)
    validity = Validity(start, start + INTERMEDIATE_LIFETIME)
    certificate = intermediate_certificate(key.public_key(), trust_domain, root, validity, serial=next(_serials))
    return Pki(root, Authority(certificate, key), Bundle(trust_domain, (root.certificate,), sequence=7))


def new_held(pki: Pki, id: SpiffeID = WEB, *, ttl: timedelta = timedelta(hours=1)) -> HeldSVID:
    key: PrivateKey = generate_key(KeyType.P256)
    chain = (pki.intermediate.certificate,)
    issuer = Issuer(pki.intermediate, chain, pki.bundle, pki.root.certificate)
    svid = issuer.issue(key.public_key(), Grant(id, ttl), now=NOW, serial=next(_serials))
    return HeldSVID(svid, key, pki.bundle, issued_at=NOW, renew_at=NOW + ttl / 2)


def entry(number: int = 0, **changes: object) -> LedgerEntry:
    made = LedgerEntry(
        kind="issued",
        serial=f"{0xA000 + number:x}",
        spiffe_id=str(WEB),
        caller="system:serviceaccount:default:web",
        method="jwt",
        public_key_sha256="ab" * 32,
        authority_id="cd" * 20,
        not_before=NOW,
        not_after=NOW + timedelta(hours=1),
        request_id=f"request-{number}",
        time=NOW + timedelta(microseconds=number),
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the tests name fields


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Permissions do not stop root: as root, be nobody for a moment. Import nothing in it."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
