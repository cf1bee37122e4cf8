"""Tokens of one issuer: what each claim and header does, the cache, and text that is no token."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citadel_py.ca.authn import CallCredentials
from citadel_py.ca.issuer_keys import KeySet
from citadel_py.ca.jwt_authn import JWTAuthenticator, JWTRules, service_account_id
from citadel_py.core.errors import Unauthenticated
from citadel_py.core.join_token import claims_to_be_join_token
from citadel_py.core.policy import Caller, Method
from citadel_py.core.spiffe import SpiffeID
from tests.ca.support import AUDIENCE, ISSUER, TD, Clock, TokenIssuer

CART = Caller(Method.JWT, "system:serviceaccount:shop:cart", SpiffeID(TD, "/ns/shop/sa/cart"), ISSUER)


class Source:
    """Keys that a test sets; what is in `newer` is found by catching up."""

    def __init__(self, document: bytes) -> None:
        self.keys = KeySet.parse(document)
        self.newer: bytes | None = None
        self.catches = 0

    async def catch_up(self) -> None:
        self.catches += 1
        if self.newer is not None:
            self.keys = KeySet.parse(self.newer)


class Setting:
    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self.clock = Clock()
        self.issuer = TokenIssuer(key, self.clock)
        self.source = Source(self.issuer.jwks())
        self.authenticator = JWTAuthenticator(JWTRules(ISSUER, AUDIENCE, TD), self.source)

    async def attest(self, token: str) -> Caller:
        credentials = CallCredentials((f"Bearer {token}",))
        attested = await self.authenticator.attest(credentials, now=self.clock.now())
        assert attested is not None
        return attested.caller

    async def rule(self, token: str) -> str:
        with pytest.raises(Unauthenticated) as caught:
            await self.attest(token)
        return caught.value.rule

    def moment(self, seconds: float) -> float:
        return self.clock.now().timestamp() + seconds


@pytest.fixture
def setting(token_key: rsa.RSAPrivateKey) -> Setting:
    return Setting(token_key)


async def test_a_token_names_its_service_account(setting: Setting) -> None:
    assert await setting.attest(setting.issuer.token()) == CART


async def test_no_bearer_token_is_nothing_for_this_authenticator(setting: Setting) -> None:
    assert await setting.authenticator.attest(CallCredentials(), now=setting.clock.now()) is None


async def test_a_join_token_is_left_to_others(setting: Setting) -> None:
    credentials = CallCredentials(("Bearer citadel-join-x",))
    assert await setting.authenticator.attest(credentials, now=setting.clock.now()) is None


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS512"])
async def test_all_rsa_algorithms_are_read(setting: Setting, algorithm: str) -> None:
    assert await setting.attest(setting.issuer.token(algorithm=algorithm)) == CART


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["a", AUDIENCE, "b"]])
async def test_one_of_several_audiences_is_enough(setting: Setting, audience: object) -> None:
    assert await setting.attest(setting.issuer.token(aud=audience)) == CART


@pytest.mark.parametrize("audience", ["istio-ca-2", 7, ["istio"], {"istio-ca": 1}, [7, AUDIENCE]])
async def test_other_audiences_are_refused(setting: Setting, audience: object) -> None:
    assert await setting.rule(setting.issuer.token(aud=audience)) == "jwt_audience"


@pytest.mark.parametrize("audience", ["", []])
async def test_an_empty_audience_is_none(setting: Setting, audience: object) -> None:
    assert await setting.rule(setting.issuer.token(aud=audience)) == "jwt_claim_missing"


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value", ["tomorrow", True, [], {}, -1, 10**30, 1e308, float("nan"), float("inf"), 253_402_300_800]
)
async def test_a_time_that_is_none_is_refused(setting: Setting, name: str, value: Any) -> None:
    assert await setting.rule(setting.issuer.token(**{name: value})) == "jwt_malformed"


async def test_times_may_have_fractions(setting: Setting) -> None:
    token = setting.issuer.token(exp=setting.moment(0.5), iat=setting.moment(-0.5))
    assert await setting.attest(token) == CART


async def test_the_issuers_clock_may_be_ahead_by_the_skew(setting: Setting) -> None:
    assert await setting.attest(setting.issuer.token(iat=setting.moment(10), nbf=setting.moment(10))) == CART
    assert await setting.rule(setting.issuer.token(iat=setting.moment(11))) == "jwt_not_yet_valid"
    assert await setting.rule(setting.issuer.token(nbf=setting.moment(11))) == "jwt_not_yet_valid"


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "system:serviceaccount:shop",
        "system:serviceaccount:shop:",
        "system:serviceaccount::cart",
        "system:serviceaccount:shop:cart:x",
        "system:serviceaccount:..:cart",
        "system:serviceaccount:shop:cart/../till",
        "system:serviceaccount:shop:c\u00e4rt",
        "system:serviceaccount:shop:cart\n",
        " system:serviceaccount:shop:cart",
        "system:node:shop:cart",
        "spiffe://example.org/ns/shop/sa/cart",
    ],
)
def test_a_subject_of_another_form_is_refused(subject: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        service_account_id(subject, TD)
    assert caught.value.rule == "jwt_subject"


async def test_a_subject_that_is_no_text_is_refused(setting: Setting) -> None:
    claims = json.dumps(setting.issuer.claims(sub=7)).encode()
    token = jwt.PyJWS().encode(claims, setting.issuer.key, algorithm="RS256", headers={"kid": "one"})
    assert await setting.rule(token) == "jwt_invalid"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tokens whose signatures were verified."""
    tokens: list[str] = []
    decode = jwt.decode

    def counting(token: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        tokens.append(token)
        return decode(token, *arguments, **options)

    monkeypatch.setattr(jwt, "decode", counting)
    return tokens


async def test_a_verified_token_is_not_verified_again_for_a_minute(setting: Setting, decoded: list[str]) -> None:
    token = setting.issuer.token()
    await setting.attest(token)
    setting.clock.advance(timedelta(seconds=59))
    assert await setting.attest(token) == CART
    assert len(decoded) == 1
    setting.clock.advance(timedelta(seconds=1))
    assert await setting.attest(token) == CART
    assert len(decoded) == 2


async def test_a_remembered_token_still_ends(setting: Setting) -> None:
    token = setting.issuer.token(exp=setting.moment(-5))
    assert await setting.attest(token) == CART
    setting.clock.advance(timedelta(seconds=5))
    assert await setting.rule(token) == "jwt_expired"


async def test_a_refused_token_is_not_remembered_as_good(setting: Setting) -> None:
    token = setting.issuer.token(nbf=setting.moment(40))
    assert await setting.rule(token) == "jwt_not_yet_valid"
    setting.clock.advance(timedelta(seconds=30))
    assert await setting.attest(token) == CART


async def test_a_remembered_token_is_forgotten_when_its_key_is_withdrawn(setting: Setting) -> None:
    token = setting.issuer.token()
    await setting.attest(token)
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    setting.source.keys = KeySet.parse(TokenIssuer(other, setting.clock).jwks())
    assert await setting.rule(token) == "jwt_signature"


async def test_an_unknown_key_is_looked_for_once(setting: Setting) -> None:
    newer = TokenIssuer(setting.issuer.key, setting.clock, kid="newer")
    assert await setting.rule(newer.token()) == "jwt_key_unknown"
    assert setting.source.catches == 1
    setting.source.newer = newer.jwks()
    assert await setting.attest(newer.token()) == CART
    assert setting.source.catches == 2
    await setting.attest(newer.token())
    assert setting.source.catches == 2


async def test_a_token_without_the_name_of_a_key_is_verified_with_the_only_one(setting: Setting) -> None:
    nameless = TokenIssuer(setting.issuer.key, setting.clock, kid=None)
    assert await setting.attest(nameless.token()) == CART


def _is_no_join_token(text: str) -> bool:
    return not claims_to_be_join_token(text.strip())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(alphabet=st.characters(max_codepoint=127), max_size=200).filter(_is_no_join_token))
async def test_text_that_is_no_token_is_refused_and_nothing_else(setting: Setting, text: str) -> None:
    await setting.rule(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda each: st.lists(each, max_size=2) | st.dictionaries(st.text(max_size=5), each, max_size=2),
    max_leaves=4,
)
_HEADER_NAMES = ["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5u", "x5c", "cty", "zip"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(_HEADER_NAMES), _JSON | st.sampled_from(["RS256", "none", "HS256", "one"])),
    claims=st.dictionaries(st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti"]), _JSON),
    signature=st.binary(max_size=300),
)
async def test_a_made_up_token_is_refused_and_nothing_else(
    setting: Setting, header: dict[str, object], claims: dict[str, object], signature: bytes
) -> None:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    await setting.rule(".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(claims=st.dictionaries(st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti"]), _JSON, min_size=1))
async def test_strange_claims_under_a_good_signature_are_refused_and_nothing_else(
    setting: Setting, claims: dict[str, object]
) -> None:
    text = json.dumps({**setting.issuer.claims(), **claims}).encode()
    token = jwt.PyJWS().encode(text, setting.issuer.key, algorithm="RS256", headers={"kid": "one"})
    try:
        assert await setting.attest(token) == CART
    except Unauthenticated:
        return
    harmless = {"jti", "nbf", "iat", "exp"}
    assert claims.keys() <= harmless


@pytest.mark.parametrize("depth", [500, 3000])
async def test_deeply_nested_json_is_refused_and_nothing_else(setting: Setting, depth: int) -> None:
    nested = urlsafe_b64encode(b"[" * depth + b"]" * depth).rstrip(b"=").decode()
    assert await setting.rule(f"{nested}.{nested}.") == "jwt_malformed"
    header = setting.issuer.token().split(".")[0]
    assert await setting.rule(f"{header}.{nested}.") == "jwt_signature"
