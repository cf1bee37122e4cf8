"""Callers with a certificate: looked up in the revocation lists of now, at every call."""

from __future__ import annotations

from datetime import timedelta

import pytest

from citadel_py.ca.authn import CallCredentials
from citadel_py.ca.certificate_authn import CertificateAuthenticator
from citadel_py.core.crl import CRL, Revoked, build_crl
from citadel_py.core.errors import Unauthenticated
from tests.ca.support import Clock, make_engine, mint

NOW = Clock().now()
ENGINE = make_engine(NOW)


class Lists:
    """The lists that are served, which change."""

    def __init__(self) -> None:
        self.now: tuple[CRL, ...] = ()

    def revoke(self, *serials: int) -> None:
        revoked, end = [Revoked(serial, NOW) for serial in serials], NOW + timedelta(days=1)
        self.now = (build_crl(ENGINE.issuer.authority, revoked, number=1, now=NOW, next_update=end),)


async def test_who_was_revoked_is_nobody_from_the_next_call_on_and_others_stay() -> None:
    lists, held, other = Lists(), mint(ENGINE, "/cart", now=NOW), mint(ENGINE, "/web", now=NOW)
    authenticator = CertificateAuthenticator(lambda: ENGINE.issuer.bundle, lambda: lists.now)
    credentials, of_other = (CallCredentials(peer_chain=each.svid.chain_pem()) for each in (held, other))
    assert await authenticator.attest(credentials, now=NOW)  # and remembered
    lists.revoke(held.svid.leaf.serial_number)

    with pytest.raises(Unauthenticated) as caught:
        await authenticator.attest(credentials, now=NOW)
    assert caught.value.rule == "certificate_revoked"
    assert held.svid.serial in caught.value.message
    assert await authenticator.attest(of_other, now=NOW)
    assert await authenticator.attest(of_other, now=NOW) is await authenticator.attest(of_other, now=NOW)


async def test_a_serial_that_another_authority_revoked_is_another_one() -> None:
    held, stranger = mint(ENGINE, "/cart", now=NOW), make_engine(NOW)
    revoked = [Revoked(held.svid.leaf.serial_number, NOW)]
    foreign = build_crl(stranger.issuer.authority, revoked, number=1, now=NOW, next_update=NOW + timedelta(days=1))
    authenticator = CertificateAuthenticator(lambda: ENGINE.issuer.bundle, lambda: (foreign,))

    assert await authenticator.attest(CallCredentials(peer_chain=held.svid.chain_pem()), now=NOW)
