"""CreateCertificate over real TLS: who gets what, in which order, and what is on record afterwards."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from citadel_py.core.keys import KeyType, generate_key, public_key_sha256, same_public_key
from citadel_py.core.pem import load_certificates
from citadel_py.core.policy import TTLLimits
from citadel_py.core.spiffe import SpiffeID
from citadel_py.obs.status import Refusal, read_refusal
from tests.ca.support import TD, World, call, make_authority, new_csr

CART = SpiffeID.parse("spiffe://example.org/ns/shop/sa/cart")


async def refused(world: World, **request: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.ask(**{"token": world.issuer.token(), **request})
    return read_refusal(caught.value)


async def test_a_service_account_token_becomes_an_identity_of_the_mesh_form(world: World) -> None:
    reply = await world.ask(token=world.issuer.token())
    assert world.verified(reply).id == CART


async def test_a_join_token_becomes_the_identity_that_it_was_made_for(world: World) -> None:
    reply = await world.ask(token=world.join_token("/machine/seven"))
    assert str(world.verified(reply).id) == "spiffe://example.org/machine/seven"


async def test_a_client_certificate_renews_its_own_identity(world: World) -> None:
    reply = await world.ask(held=world.mint("/ns/shop/sa/till"))
    assert str(world.verified(reply).id) == "spiffe://example.org/ns/shop/sa/till"


async def test_the_leaf_has_the_key_of_the_csr(world: World) -> None:
    key = generate_key(KeyType.P384)
    svid = world.verified(await world.ask(token=world.issuer.token(), csr=new_csr(key)))
    assert same_public_key(svid.leaf.public_key(), key.public_key())  # type: ignore[arg-type]


async def test_the_reply_is_leaf_intermediate_and_the_whole_bundle(world: World) -> None:
    retired, _ = make_authority(world.clock.now())
    bundle = world.engine.issuer.bundle.with_authorities((*world.engine.issuer.bundle.authorities, retired.certificate))
    issuer = world.engine.issuer
    world.sign_with(replace(issuer, bundle=bundle))
    leaf, intermediate, roots = (await world.ask(token=world.issuer.token())).cert_chain
    assert (
        load_certificates(leaf.encode())[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    )
    assert load_certificates(intermediate.encode()) == issuer.intermediates
    assert load_certificates(roots.encode()) == bundle.authorities
    for element, certificates in ((leaf, 1), (intermediate, 1), (roots, 2)):
        assert element.count("-----BEGIN CERTIFICATE-----") == certificates
        assert element.startswith("-----BEGIN CERTIFICATE-----\n")
        assert element.endswith("-----END CERTIFICATE-----\n")


async def test_what_was_issued_is_in_the_ledger_under_the_request_id_of_the_reply(world: World) -> None:
    key = generate_key(KeyType.P256)
    async with world.channel() as channel:
        pending = call(channel, token=world.issuer.token(), csr=new_csr(key))
        svid = world.verified(await pending)
        trailing = dict(await pending.trailing_metadata())
    (entry,) = world.issued()
    assert (entry.kind, entry.method, entry.caller) == ("issued", "jwt", "system:serviceaccount:shop:cart")
    assert (entry.serial, entry.spiffe_id, entry.public_key_sha256) == (
        svid.serial,
        str(CART),
        public_key_sha256(key.public_key()),
    )
    assert (entry.not_before, entry.not_after, entry.authority_id) == (
        svid.not_before,
        svid.not_after,
        svid.authority_id,
    )
    assert entry.request_id == trailing["citadel-request-id"]
    assert world.ledger.verify()["serve"].position == 2  # the first row is the serving certificate's


@pytest.mark.parametrize("validity", [0, -1, -(2**63)])
async def test_without_a_wish_the_lifetime_is_the_default(world: World, validity: int) -> None:
    svid = world.verified(await world.ask(token=world.issuer.token(), validity=validity))
    assert svid.not_after == world.clock.now() + timedelta(hours=24)


async def test_a_lifetime_within_the_limits_is_granted(world: World) -> None:
    svid = world.verified(await world.ask(token=world.issuer.token(), validity=3600))
    assert svid.not_after == world.clock.now() + timedelta(hours=1)


async def test_lifetimes_are_shortened_at_random_but_never_below_the_minimum(
    tmp_path: Path, token_key: rsa.RSAPrivateKey
) -> None:
    async with World(tmp_path, token_key, ttl_spread=0.1).running() as world:  # its dice say one half
        day = world.verified(await world.ask(token=world.issuer.token()))
        minute = world.verified(await world.ask(token=world.issuer.token(), validity=60))
        assert day.not_after == world.clock.now() + timedelta(hours=24) * 0.95
        assert minute.not_after == world.clock.now() + timedelta(minutes=1)


@pytest.mark.parametrize("validity", [7776001, 2**63 - 1])
async def test_a_lifetime_above_the_maximum_is_refused_with_both_numbers(world: World, validity: int) -> None:
    refusal = await refused(world, validity=validity)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LIFETIME_ABOVE_MAXIMUM")
    assert str(validity) in refusal.message
    assert "7776000" in refusal.message


async def test_a_lifetime_below_the_minimum_is_refused(world: World) -> None:
    assert (await refused(world, validity=59)).reason == "LIFETIME_BELOW_MINIMUM"


async def test_a_leaf_ends_no_later_than_its_authority(world: World) -> None:
    world.change_policy(limits=TTLLimits(maximum=timedelta(days=400)))
    svid = world.verified(await world.ask(token=world.issuer.token(), validity=390 * 86400))
    assert svid.not_after == world.engine.issuer.not_after


@pytest.mark.parametrize(
    "wishes", [{"CertSigner": ""}, {"CertSigner": None}, {"ImpersonatedIdentity": ""}, {"Other": 7}]
)
async def test_empty_and_unknown_metadata_changes_nothing(world: World, wishes: dict[str, object]) -> None:
    reply = await world.ask(token=world.issuer.token(), wishes=wishes)
    assert world.verified(reply).id == CART


async def test_a_signer_that_is_not_here_is_refused(world: World) -> None:
    refusal = await refused(world, wishes={"CertSigner": "clusterissuers.example/other"})
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CERT_SIGNER_UNKNOWN")


async def test_the_callers_own_identity_may_be_asked_for_by_name(world: World) -> None:
    reply = await world.ask(token=world.issuer.token(), wishes={"ImpersonatedIdentity": str(CART)})
    assert world.verified(reply).id == CART


@pytest.mark.parametrize(
    ("identity", "code", "reason"),
    [
        ("spiffe://example.org/ns/shop/sa/till", "PERMISSION_DENIED", "IDENTITY_NOT_GRANTED"),
        ("spiffe://other.org/ns/shop/sa/cart", "PERMISSION_DENIED", "IDENTITY_NOT_GRANTED"),
        ("spiffe://example.org/ns/shop/sa/cart/", "INVALID_ARGUMENT", "PATH_TRAILING_SLASH"),
        ("SPIFFE://example.org/ns/shop/sa/cart", "INVALID_ARGUMENT", "SPIFFE_ID_SCHEME"),
        (7, "INVALID_ARGUMENT", "METADATA_KIND"),
    ],
)
async def test_another_identity_is_refused(world: World, identity: object, code: str, reason: str) -> None:
    refusal = await refused(world, wishes={"ImpersonatedIdentity": identity})
    assert (refusal.code.name, refusal.reason) == (code, reason)
    assert world.issued() == []


@pytest.mark.parametrize(
    "csr", ["", "no PEM", new_csr().replace("\nMI", "\nAA", 1), new_csr() + new_csr(), "x" * 20000]
)
async def test_a_bad_csr_is_refused_with_its_rule_and_leaves_no_row(world: World, csr: str) -> None:
    refusal = await refused(world, csr=csr)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason
    assert refusal.reason != "INTERNAL"
    assert world.issued() == []


async def test_a_csr_that_names_somebody_else_is_refused(world: World) -> None:
    refusal = await refused(world, csr=new_csr(id=SpiffeID(TD, "/ns/shop/sa/till")))
    assert (refusal.code.name, refusal.reason) == ("INVALID_ARGUMENT", "CSR_SAN_NOT_GRANTED")
    assert world.issued() == []


async def test_a_refused_csr_does_not_use_up_a_join_token(world: World) -> None:
    token = world.join_token()
    assert (await refused(world, token=token, csr="no PEM")).code is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused(world, token=token, validity=59)).reason == "LIFETIME_BELOW_MINIMUM"
    world.verified(await world.ask(token=token))


async def test_while_the_ledger_is_locked_nothing_is_issued_and_it_goes_on_by_itself(world: World) -> None:
    other = sqlite3.connect(world.ledger_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        refusal = await refused(world)
        assert (refusal.code.name, refusal.reason) == ("UNAVAILABLE", "LEDGER_LOCKED")
        assert refusal.retry_after is not None
        assert refusal.retry_after > timedelta(0)
        assert world.commits.problem is not None
    finally:
        other.execute("ROLLBACK")
        other.close()
    world.verified(await world.ask(token=world.issuer.token()))
    assert len(world.issued()) == 1
    assert world.commits.problem is None


async def test_after_the_authority_ended_callers_are_asked_to_come_back(world: World) -> None:
    async with world.channel() as channel:
        world.clock.advance(timedelta(hours=1001))
        refusal = await refused(world, token=world.issuer.token(), channel=channel)
    assert (refusal.code.name, refusal.reason) == ("UNAVAILABLE", "AUTHORITY_NOT_VALID_NOW")


async def test_a_request_that_is_too_large_is_refused_before_it_is_read(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.ask(token=world.issuer.token(), csr="x" * 70_000)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert world.issued() == []


async def test_every_answer_of_the_token_listener_says_where_certificates_are_taken(world: World) -> None:
    port = world.server.mtls_address.rpartition(":")[2]
    async with world.channel() as channel:
        pending = call(channel, token=world.issuer.token())
        await pending
        assert dict(await pending.trailing_metadata())["citadel-mtls-port"] == port
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel)
        assert dict(caught.value.trailing_metadata() or ())["citadel-mtls-port"] == port


async def test_a_new_authority_signs_from_the_next_request_on(world: World) -> None:
    async with world.channel() as channel:
        before = world.verified(await call(channel, token=world.issuer.token()))
        first, second = world.engine.issuer, world.successor()
        world.sign_with(second)
        after = world.verified(await call(channel, token=world.issuer.token()))
    assert before.authority_id == first.authority.id
    assert after.authority_id == second.authority.id
    assert after.chain[1:] == second.intermediates
