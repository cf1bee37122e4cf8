"""Signed statements about the ledger's chains."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from citadel_py.core.errors import VerificationFailed
from citadel_py.core.keys import KeyType, PrivateKey, generate_key, is_signature_valid, sign_message
from citadel_py.core.ledger import Head
from citadel_py.core.ledger_heads import Purpose, Seal, SignedHead, authority_keys
from citadel_py.core.profile import Authority, Validity, root_certificate
from citadel_py.core.spiffe import TrustDomain

NOW = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
HEAD = Head(7, "ab" * 32)


def seal_of(key: PrivateKey) -> Seal:
    start = NOW.replace(microsecond=0)
    validity = Validity(start, start + timedelta(days=1))
    return Seal.of(Authority(root_certificate(key, TrustDomain("example.org"), validity, serial=1 << 100), key))


@pytest.fixture(scope="module")
def seal() -> Seal:
    return seal_of(generate_key(KeyType.P256))


@pytest.fixture(scope="module")
def signed(seal: Seal) -> SignedHead:
    return seal.sign(Purpose.HEAD, "serve", HEAD, now=NOW)


@pytest.mark.parametrize("key_type", [KeyType.P256, KeyType.P384, KeyType.RSA3072])
def test_every_kind_of_authority_signs_what_verifies(key_type: KeyType) -> None:
    seal = seal_of(generate_key(key_type))
    signed = seal.sign(Purpose.CHECKPOINT, "serve", HEAD, now=NOW)
    signed.check(seal.keys)
    with pytest.raises(VerificationFailed):
        replace(signed, purpose=Purpose.HEAD).check(seal.keys)


def test_the_text_that_is_signed_is_that_of_the_reference(signed: SignedHead, seal: Seal) -> None:
    prefix, text = signed.statement.decode().split("\n")
    assert prefix == "citadel-py ledger statement v1"
    assert text == (
        f'{{"authority_id":"{seal.authority.id}","hash":"{HEAD.hash}","position":7,"purpose":"head",'
        '"time":"2026-03-04T05:06:07.890123+00:00","writer":"serve"}'
    )


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": Purpose.CHECKPOINT},
        {"writer": "Serve"},
        {"head": Head(8, HEAD.hash)},
        {"head": Head(7, "ac" * 32)},
        {"time": NOW + timedelta(microseconds=1)},
        {"signature": b""},
        {"signature": bytes(70)},
    ],
)
def test_whatever_is_changed_is_found(signed: SignedHead, seal: Seal, change: dict[str, object]) -> None:
    with pytest.raises(VerificationFailed) as caught:
        replace(signed, **change).check(seal.keys)  # type: ignore[arg-type]  # the test names fields
    assert caught.value.rule == "ledger_signature_invalid"


def test_another_key_under_the_same_id_does_not_verify(signed: SignedHead, seal: Seal) -> None:
    other = seal_of(generate_key(KeyType.P256)).authority.key.public_key()
    with pytest.raises(VerificationFailed) as caught:
        signed.check({seal.authority.id: other})
    assert caught.value.rule == "ledger_signature_invalid"


def test_an_authority_that_is_not_known_is_named(signed: SignedHead) -> None:
    with pytest.raises(VerificationFailed, match=signed.authority_id) as caught:
        signed.check({})
    assert caught.value.rule == "ledger_authority_unknown"
    assert "--authorities" in caught.value.hints[0]


def test_a_seal_knows_itself_and_those_it_was_told_of(seal: Seal) -> None:
    newer = seal_of(generate_key(KeyType.P384))
    both = Seal.of(newer.authority, [seal.authority.certificate])
    assert both.keys.keys() == {seal.authority.id, newer.authority.id}
    assert authority_keys([]) == {}


@pytest.mark.parametrize("key_type", [KeyType.P256, KeyType.P384, KeyType.RSA3072])
def test_a_signature_over_a_certificate_is_none_over_a_text(key_type: KeyType) -> None:
    """The bytes that a certificate's signature covers begin with a DER sequence, and no text of ours does."""
    certificate = seal_of(generate_key(key_type)).authority.certificate
    key = certificate.public_key()
    covered, signature = certificate.tbs_certificate_bytes, certificate.signature
    assert is_signature_valid(key, signature, covered)  # type: ignore[arg-type]  # one of our kinds
    assert covered[0] == 0x30
    assert not is_signature_valid(key, signature, hashlib.sha256(covered).digest())  # type: ignore[arg-type]  # the same


def test_a_message_is_bound_to_its_key() -> None:
    one, other = generate_key(KeyType.P256), generate_key(KeyType.P256)
    signature = sign_message(one, b"a text")
    assert is_signature_valid(one.public_key(), signature, b"a text")
    assert not is_signature_valid(one.public_key(), signature, b"a text.")
    assert not is_signature_valid(other.public_key(), signature, b"a text")
