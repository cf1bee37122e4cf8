from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.join_token import new_token
from citadel_py.core.keys import KeyType, PrivateKey, generate_key, private_key_pem
from citadel_py.core.secrets import CertificateSecret
from citadel_py.core.spiffe import SpiffeID
from citadel_py.obs.redaction import MAX_TEXT, REMOVED, is_harmless, redact, redact_text

PKCS8, TRADITIONAL = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
KEYS = {kind: generate_key(kind) for kind in (KeyType.P256, KeyType.P384, KeyType.RSA2048)}
P256 = KEYS[KeyType.P256]
JOIN_TOKEN = new_token(secrets.token_bytes(32))[0]
WEB_TOKEN = jwt.encode({"sub": "system:serviceaccount:shop:web"}, "k" * 32, algorithm="HS256")


def pem_of(key: PrivateKey, form: serialization.PrivateFormat = PKCS8) -> str:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def body_of(pem: str) -> str:
    return "".join(pem.splitlines()[1:-1])


@dataclass(frozen=True)
class Held:
    id: SpiffeID
    key: PrivateKey
    pem: bytes
    hidden: str = field(default="not shown", repr=False)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("form", [PKCS8, TRADITIONAL])
def test_a_pem_key_is_removed_and_the_text_around_it_stays(kind: KeyType, form: serialization.PrivateFormat) -> None:
    pem = pem_of(KEYS[kind], form)

    assert redact_text(f"before {pem} after") == f"before {REMOVED}\n after"


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("form", [PKCS8, TRADITIONAL])
def test_a_key_without_its_first_line_is_removed(kind: KeyType, form: serialization.PrivateFormat) -> None:
    body = body_of(pem_of(KEYS[kind], form))

    assert body[20:] not in redact_text(f"inline_string: {body}")


def test_an_encrypted_key_is_removed() -> None:
    pem = private_key_pem(P256, b"correct horse").decode()

    assert body_of(pem)[:60] not in redact_text(pem).replace("\n", "")


def test_a_key_cut_off_before_its_last_line_is_removed() -> None:
    assert redact_text(pem_of(P256)[:-30]) == REMOVED


def test_a_key_inside_the_repr_of_bytes_is_removed() -> None:
    assert "PRIVATE" not in redact_text(repr(pem_of(P256).encode()))


def test_a_certificate_request_or_public_key_stays() -> None:
    public = P256.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    assert redact_text(public.decode()) == public.decode()


@pytest.mark.parametrize("secret", [JOIN_TOKEN, WEB_TOKEN])
@pytest.mark.parametrize(
    "around", ["{}", "refused {}.", "authorization: Bearer {}", '{{"t": "{}"}}', "a\\n{}\\n", "x={};y"]
)
def test_a_token_is_removed_in_any_text(secret: str, around: str) -> None:
    assert secret not in redact_text(around.format(secret))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_an_opaque_bearer_token_is_removed(scheme: str) -> None:
    assert redact_text(f"{scheme} 0123456789abcdef") == f"{scheme}{REMOVED}"


@pytest.mark.parametrize(
    "name",
    ["token", "join_token", "password", "passphrase", "private_key", "key_pem", "Authorization", "jwt", "set-cookie"],
)
def test_a_field_with_a_secret_name_is_removed_whatever_it_holds(name: str) -> None:
    assert redact({name: "plain"}) == {name: REMOVED}
    assert redact({name: {"nested": "plain"}}) == {name: REMOVED}


@pytest.mark.parametrize("name", ["token_file", "token_digest", "public_key_sha256", "serial", "key_type", "resource"])
def test_a_field_with_a_harmless_name_stays(name: str) -> None:
    assert redact({name: "plain"}) == {name: "plain"}


def test_absent_secrets_are_told_as_absent() -> None:
    assert redact({"passphrase": None, "token": False}) == {"passphrase": None, "token": False}


def test_secrets_are_found_in_nested_objects() -> None:
    held = Held(SpiffeID.parse("spiffe://example.org/web"), P256, pem_of(P256).encode())
    secret = CertificateSecret("default", b"chain", pem_of(P256).encode())

    assert redact({"a": [{"b": (held, secret)}]}) == {
        "a": [
            {
                "b": [
                    {"id": "spiffe://example.org/web", "key": REMOVED, "pem": REMOVED + "\n"},
                    {"name": "default", "chain_pem": "chain", "version": secret.version},
                ]
            }
        ]
    }


def test_secrets_in_names_and_in_messages_of_exceptions_are_removed() -> None:
    assert redact({JOIN_TOKEN: ValueError(f"no such token {JOIN_TOKEN}")}) == {REMOVED: f"no such token {REMOVED}"}


def test_an_endless_structure_ends() -> None:
    endless: list[object] = []
    endless.append(endless)

    assert REMOVED in json.dumps(redact(endless))


def test_text_that_could_steer_a_terminal_is_escaped() -> None:
    assert redact_text("\x1b[2Jx\r\x9b\u2028\n\t") == "\\x1b[2Jx\\x0d\\x9b\\x2028\n\t"


def test_long_text_is_bounded() -> None:
    assert len(redact_text("x" * (MAX_TEXT + 1))) < MAX_TEXT + 40


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(_values, st.binary(min_size=32, max_size=32))
def test_whatever_is_logged_beside_a_token_becomes_json_without_it(value: object, random: bytes) -> None:
    token, _ = new_token(random)

    assert token not in json.dumps(redact([value, {"text": [value, f"{token}"]}]))


@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(["serial", "peer", "token"]), _values, max_size=4))
def test_what_is_called_harmless_stays_as_it_is(fields: dict[str, object]) -> None:
    if is_harmless(fields):
        assert redact(fields) == fields


@pytest.mark.parametrize("secret", [JOIN_TOKEN, WEB_TOKEN, "Bearer sesame-open", pem_of(P256)])
def test_no_secret_is_called_harmless(secret: str) -> None:
    assert is_harmless({"caller": "a", "peer": "ipv4:127.0.0.1:1", "count": 3, "code": None})
    assert not is_harmless({"caller": "a", "error": f"x{secret}"})
    assert not is_harmless({"nested": {"caller": "a"}})
