"""Whoever cannot be authenticated learns nothing from the answer; whoever reads our log learns why."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import hmac
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.rpc import status_pb2  # type: ignore[import-untyped]  # ships .pyi files without py.typed
from structlog.typing import EventDict

from citadel_py.core.join_token import PREFIX, token_digest
from tests.ca.support import TD, Held, TokenIssuer, World, call, make_engine, mint, until

MINUTE = timedelta(minutes=1)


def _segment(value: object) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(world: World, algorithm: str = "none") -> str:
    return f"{_segment({'alg': algorithm})}.{_segment(world.issuer.claims())}."


def key_confusion(world: World) -> str:
    """HS256 with the public key, as published, in the place of a secret."""
    secret = world.issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{_segment({'alg': 'HS256', 'kid': 'one'})}.{_segment(world.issuer.claims())}"
    mac = hmac.HMAC(secret, SHA256())
    mac.update(signed.encode())
    return f"{signed}.{urlsafe_b64encode(mac.finalize()).rstrip(b'=').decode()}"


def forged(world: World, **headers: object) -> str:
    """Signed with a key of the attacker's own."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    offered = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    headers = {name: offered if value == "own key" else value for name, value in headers.items()}
    return TokenIssuer(key, world.clock).token(headers=headers)


def signed(world: World, header: dict[str, object]) -> str:
    """Signed properly, with a header that the library would not make."""
    text = f"{_segment({'alg': 'RS256', 'kid': 'one', **header})}.{_segment(world.issuer.claims())}"
    signature = world.issuer.key.sign(text.encode(), padding.PKCS1v15(), SHA256())
    return f"{text}.{urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def tampered(world: World) -> str:
    header, _, signature = world.issuer.token().split(".")
    return f"{header}.{_segment(world.issuer.claims(sub='system:serviceaccount:kube-system:root'))}.{signature}"


def used(world: World) -> str:
    token = world.join_token()
    world.ledger.redeem(token_digest(token), now=world.clock.now())
    return token


BAD_TOKENS: Mapping[str, tuple[str, Callable[[World], str]]] = {
    "expired": ("jwt_expired", lambda world: world.issuer.token(exp=_in(world, -MINUTE))),
    "not yet valid": ("jwt_not_yet_valid", lambda world: world.issuer.token(nbf=_in(world, 2 * MINUTE))),
    "from the future": ("jwt_not_yet_valid", lambda world: world.issuer.token(iat=_in(world, 2 * MINUTE))),
    "for another audience": ("jwt_audience", lambda world: world.issuer.token(aud=["kubernetes"])),
    "of another issuer": ("jwt_issuer", lambda world: world.issuer.token(iss="https://issuer.example.org.evil")),
    "issuer in part": ("jwt_issuer", lambda world: world.issuer.token(iss="https://issuer.example")),
    "without exp": ("jwt_claim_missing", lambda world: world.issuer.token(exp=None)),
    "without aud": ("jwt_claim_missing", lambda world: world.issuer.token(aud=None)),
    "without iss": ("jwt_claim_missing", lambda world: world.issuer.token(iss=None)),
    "without sub": ("jwt_claim_missing", lambda world: world.issuer.token(sub=None)),
    "no service account": ("jwt_subject", lambda world: world.issuer.token(sub="alice@example.org")),
    "a path in the name": ("jwt_subject", lambda world: world.issuer.token(sub="system:serviceaccount:a/sa/b:c")),
    "alg none": ("jwt_key_unknown", unsigned),
    "alg none, in capitals": ("jwt_key_unknown", lambda world: unsigned(world, "NONE")),
    "key confusion": ("jwt_key_unknown", key_confusion),
    "another algorithm than the key's": ("jwt_key_unknown", lambda world: unsigned(world, "ES256")),
    "unknown kid": ("jwt_key_unknown", lambda world: world.issuer.token(headers={"kid": "two"})),
    "a foreign key": ("jwt_signature", forged),
    "a key in the header": ("jwt_signature", lambda world: forged(world, jwk="own key")),
    "a key elsewhere": ("jwt_signature", lambda world: forged(world, jku="https://evil.example/jwks")),
    "a certificate elsewhere": ("jwt_signature", lambda world: forged(world, x5u="https://evil.example/x5u")),
    "changed claims": ("jwt_signature", tampered),
    "critical header": ("jwt_malformed", lambda world: world.issuer.token(headers={"crit": ["exp"], "exp": 1})),
    "b64 header": ("jwt_critical_header", lambda world: signed(world, {"b64": False, "crit": ["b64"]})),
    "b64 header without effect": ("jwt_critical_header", lambda world: signed(world, {"b64": True})),
    "no token at all": ("jwt_malformed", lambda _world: "x"),
    "three parts of nothing": ("jwt_malformed", lambda _world: ".."),
    "too long": ("bearer_too_large", lambda _world: "x" * (16 * 1024 + 1)),
    "join token that was never made": ("join_token_unknown", lambda _world: PREFIX + "A" * 43),
    "join token in a wrong form": ("join_token_malformed", lambda _world: PREFIX + "A" * 42),
    "join token of yesterday": ("join_token_expired", lambda world: world.join_token(ttl=timedelta(0))),
    "join token that was used": ("join_token_used", used),
}


def _in(world: World, delta: timedelta) -> int:
    return int((world.clock.now() + delta).timestamp())


def code_and_details(error: grpc.aio.AioRpcError) -> tuple[object, ...]:
    """All that a caller gets to see of a refusal, but for the request id, which is random."""
    trailing = dict(error.trailing_metadata() or ())
    request_id = str(trailing.pop("citadel-request-id")).encode()
    details = bytes(trailing.pop("grpc-status-details-bin"))
    assert request_id in details
    return error.code(), error.details(), details.replace(request_id, b""), sorted(trailing.items())


async def refusal(world: World, **request: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.ask(**request)
    return caught.value


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_a_bad_token_is_refused_without_a_reason_that_the_log_has(
    world: World, log: list[EventDict], name: str
) -> None:
    rule, make = BAD_TOKENS[name]
    token = make(world)
    async with world.channel() as channel:
        error = await refusal(world, token=token, channel=channel)
        assert code_and_details(error) == code_and_details(await refusal(world, channel=channel))
    await until(lambda: len(log) == 2)  # the line is written after the answer left
    assert [line.get("rule") for line in log] == [rule, "credentials_missing"]
    assert log[0]["request_id"] == dict(error.trailing_metadata() or ())["citadel-request-id"]
    assert token not in str(log)
    assert world.issued() == []


async def test_the_one_text_for_all_of_them_is_opaque(world: World) -> None:
    code, text, _, _ = code_and_details(await refusal(world, token="x"))
    assert (code, text) == (grpc.StatusCode.UNAUTHENTICATED, "the caller could not be authenticated")
    status = status_pb2.Status.FromString(await _details(world))
    assert [each.type_url for each in status.details] == [
        "type.googleapis.com/google.rpc.ErrorInfo",
        "type.googleapis.com/google.rpc.RequestInfo",
    ]


async def _details(world: World) -> bytes:
    return bytes(dict((await refusal(world, token="x")).trailing_metadata() or ())["grpc-status-details-bin"])


@pytest.mark.parametrize("header", ["", "Bearer", "Basic YTpi", "bearertoken", "Token x"])
async def test_a_header_without_a_bearer_token_is_refused_like_any_other(world: World, header: str) -> None:
    async with world.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, authorization=header)
    assert code_and_details(caught.value) == code_and_details(await refusal(world))


async def test_the_name_of_the_scheme_has_no_case(world: World) -> None:
    async with world.channel() as channel:
        world.verified(await call(channel, authorization=f"bEARER {world.issuer.token()}"))


async def test_two_authorization_headers_are_ambiguous(world: World, log: list[EventDict]) -> None:
    header = ("authorization", f"Bearer {world.issuer.token()}")
    async with world.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(channel, metadata=(header, header))
    await until(lambda: any(line.get("rule") == "credentials_ambiguous" for line in log))


async def test_a_token_is_good_for_the_clock_skew_beyond_its_end_and_no_longer(world: World) -> None:
    token = world.issuer.token(exp=_in(world, timedelta(0)))
    async with world.channel() as channel:
        world.clock.advance(timedelta(seconds=9))
        await call(channel, token=token)
        world.clock.advance(timedelta(seconds=1))
        await refusal(world, token=token, channel=channel)


async def test_of_two_with_the_same_join_token_one_gets_a_certificate(world: World) -> None:
    token = world.join_token()
    async with world.channel() as channel:
        outcomes = [call(channel, token=token) for _ in range(5)]
        codes = sorted([(await outcome.code()).name for outcome in outcomes])
    assert codes == ["OK", *["UNAUTHENTICATED"] * 4]
    assert len(world.issued()) == 1


async def test_a_certificate_that_ends_while_its_connection_is_open_is_refused(
    world: World, log: list[EventDict]
) -> None:
    held = world.mint()
    async with world.channel(held) as channel:
        await call(channel)
        world.clock.advance(timedelta(hours=3))
        error = await refusal(world, channel=channel)
    assert code_and_details(error)[:2] == code_and_details(await refusal(world))[:2]
    await until(lambda: any(line.get("rule") == "leaf_expired" for line in log))


async def test_a_certificate_of_an_authority_that_left_the_bundle_is_refused(world: World) -> None:
    held = world.mint()
    async with world.channel(held) as channel:
        await call(channel)
        world.engine = make_engine(world.clock.now())
        error = await refusal(world, channel=channel)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_certificate_of_another_trust_domain_gets_no_connection(world: World) -> None:
    other = make_engine(world.clock.now(), TD)
    stranger = mint(other, "/ns/shop/sa/cart", now=world.clock.now())
    error = await refusal(world, held=Held(stranger.svid, stranger.key))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert world.issued() == []


async def test_without_a_certificate_there_is_no_connection_to_the_listener_for_certificates(world: World) -> None:
    credentials = grpc.ssl_channel_credentials(world.engine.issuer.bundle.to_pem())
    async with grpc.aio.secure_channel(world.server.mtls_address, credentials) as channel:
        error = await refusal(world, channel=channel, token=world.issuer.token())
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_good_certificate_counts_beside_a_bad_token(world: World) -> None:
    async with world.channel(world.mint("/ns/shop/sa/till")) as channel:
        for authorization in (f"Bearer {world.issuer.token(exp=1)}", "nonsense"):
            svid = world.verified(await call(channel, authorization=authorization))
            assert svid.id.path == "/ns/shop/sa/till"


async def test_a_good_token_counts_beside_a_certificate_that_has_ended(world: World) -> None:
    async with world.channel(world.mint("/ns/shop/sa/till")) as channel:
        world.clock.advance(timedelta(hours=3))
        svid = world.verified(await call(channel, token=world.issuer.token()))
    assert svid.id.path == "/ns/shop/sa/cart"


async def test_a_certificate_decides_before_a_token(world: World) -> None:
    async with world.channel(world.mint("/ns/shop/sa/till")) as channel:
        token = world.join_token()
        svid = world.verified(await call(channel, token=token))
    assert svid.id.path == "/ns/shop/sa/till"
    world.verified(await world.ask(token=token))  # it was not used up


async def test_while_no_issuer_keys_are_known_callers_with_tokens_are_asked_to_come_back(world: World) -> None:
    world.forget_jwks()
    error = await refusal(world, token=world.issuer.token())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    world.verified(await world.ask(token=world.join_token()))
