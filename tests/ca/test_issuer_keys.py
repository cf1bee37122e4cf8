"""Key sets of token issuers: which keys count, and for which algorithms."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.ca.issuer_keys import MAX_DOCUMENT_BYTES, MAX_KEYS, KeySet, UnknownKey
from citadel_py.core.errors import InvalidConfiguration

P256, P384, P521 = (ec.generate_private_key(curve()) for curve in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))
ED25519 = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, **members: object) -> dict[str, object]:
    match key:
        case rsa.RSAPublicKey() | rsa.RSAPrivateKey():
            algorithm: Any = jwt.algorithms.RSAAlgorithm
        case ec.EllipticCurvePublicKey() | ec.EllipticCurvePrivateKey():
            algorithm = jwt.algorithms.ECAlgorithm
        case _:
            algorithm = jwt.algorithms.OKPAlgorithm
    described = {name: value for name, value in json.loads(algorithm.to_jwk(key)).items() if name != "key_ops"}
    return {**described, **members}


def document(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [(P256, {"ES256"}), (P384, {"ES384"}), (ED25519, {"EdDSA"})],
)
def test_the_kind_of_a_key_decides_its_algorithms(key: Any, algorithms: set[str]) -> None:
    (parsed,) = KeySet.parse(document(jwk(key.public_key()))).keys
    assert parsed.algorithms == algorithms


def test_an_rsa_key_is_for_rsa_signatures_only(token_key: rsa.RSAPrivateKey) -> None:
    (parsed,) = KeySet.parse(document(jwk(token_key.public_key()))).keys
    assert parsed.algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


def test_the_algorithm_that_a_key_names_is_its_only_one(token_key: rsa.RSAPrivateKey) -> None:
    (parsed,) = KeySet.parse(document(jwk(token_key.public_key(), alg="PS384"))).keys
    assert parsed.algorithms == {"PS384"}


@pytest.mark.parametrize(
    "member",
    [
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "none"},
        {},
        7,
        jwk(P521.public_key()),
        jwk(P256),  # a private key
        jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()),  # noqa: S505 - that is the point
        jwk(P256.public_key(), use="enc"),
        jwk(P256.public_key(), key_ops=["sign"]),
        jwk(P256.public_key(), alg="HS256"),
        jwk(P256.public_key(), alg="ES384"),
        jwk(P256.public_key(), alg="none"),
        jwk(P256.public_key(), kid=7),
        jwk(P256.public_key(), x="AAAA"),
    ],
)
def test_a_key_of_another_kind_or_use_is_passed_over(member: object) -> None:
    good = jwk(P384.public_key(), kid="good")
    assert [key.kid for key in KeySet.parse(document(member, good)).keys] == ["good"]
    with pytest.raises(InvalidConfiguration) as caught:
        KeySet.parse(document(member))
    assert caught.value.rule == "jwks_unusable"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"keys": {}}',
        b'{"keys": []}',
        b"{" * 5000,
        b"[" * 100_000,
        b"\xff",
        document(*[jwk(P256.public_key())] * (MAX_KEYS + 1)),
        document(jwk(P256.public_key())) + b" " * MAX_DOCUMENT_BYTES,
    ],
    ids=lambda text: f"{text[:10]!r}x{len(text)}",
)
def test_what_is_no_bounded_key_set_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidConfiguration):
        KeySet.parse(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda each: (
            st.lists(each, max_size=3)
            | st.dictionaries(
                st.sampled_from(["keys", "kty", "crv", "x", "y", "n", "e", "k", "alg", "use", "key_ops", "kid"]),
                each,
                max_size=6,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        KeySet.parse(
            json.dumps(
                {"keys": [value, {"kty": "EC", "crv": "P-256", "x": value}, {"kty": "RSA", "n": value, "e": "AQAB"}]}
            ).encode()
        )
    except InvalidConfiguration:
        return
    pytest.fail("no such value makes a usable key")


def test_a_key_is_found_by_name_and_algorithm() -> None:
    keys = KeySet.parse(document(jwk(P256.public_key(), kid="a"), jwk(P384.public_key(), kid="b")))
    assert keys.find(kid="b", algorithm="ES384").kid == "b"
    for kid, algorithm in (("a", "ES384"), ("c", "ES256"), ("a", "HS256"), ("a", "none")):
        with pytest.raises(UnknownKey):
            keys.find(kid=kid, algorithm=algorithm)


def test_a_token_without_a_name_needs_a_set_with_one_fitting_key() -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    keys = KeySet.parse(document(jwk(P256.public_key(), kid="a"), jwk(P384.public_key(), kid="b")))
    assert keys.find(kid=None, algorithm="ES256").kid == "a"
    keys = KeySet.parse(document(jwk(P256.public_key(), kid="a"), jwk(other, kid="b")))
    with pytest.raises(UnknownKey):
        keys.find(kid=None, algorithm="ES256")


def test_two_keys_of_one_name_and_kind_are_ambiguous() -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    keys = KeySet.parse(document(jwk(P256.public_key(), kid="a"), jwk(other, kid="a")))
    with pytest.raises(UnknownKey):
        keys.find(kid="a", algorithm="ES256")
