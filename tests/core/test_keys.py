"""Keys in and out of PEM, and which of them an authority may have."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

from citadel_py.core.errors import InvalidKey
from citadel_py.core.keys import (
    AUTHORITY_KEY_TYPES,
    KeyType,
    PrivateKey,
    check_authority_key,
    generate_key,
    key_id,
    load_private_key,
    private_key_pem,
    public_key_der,
    public_key_sha256,
    same_public_key,
    signing_hash,
)

SECRET = b"correct horse"
P256 = generate_key(KeyType.P256)
RSA2048 = generate_key(KeyType.RSA2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()


def traditional_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, encryption)


def refused(pem: bytes, passphrase: bytes | None = None) -> InvalidKey:
    with pytest.raises(InvalidKey) as caught:
        load_private_key(pem, passphrase)
    return caught.value


@pytest.mark.parametrize(
    ("key_type", "size"), [("p256", 256), ("p384", 384), ("rsa2048", 2048), ("rsa3072", 3072), ("rsa4096", 4096)]
)
def test_a_key_of_each_kind_has_the_size_that_its_name_says(key_type: str, size: int) -> None:
    key = generate_key(KeyType(key_type))
    assert isinstance(key, ec.EllipticCurvePrivateKey if key_type.startswith("p") else rsa.RSAPrivateKey)
    assert key.key_size == size
    if isinstance(key, rsa.RSAPrivateKey):
        assert key.public_key().public_numbers().e == 65537


@pytest.mark.parametrize("key", [P256, RSA2048, ED25519], ids=["p256", "rsa2048", "ed25519"])
@pytest.mark.parametrize("passphrase", [None, SECRET], ids=["plain", "encrypted"])
def test_a_key_comes_back_from_its_pem(key: PrivateKey, passphrase: bytes | None) -> None:
    pem = private_key_pem(key, passphrase)
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----" if passphrase else b"-----BEGIN PRIVATE KEY-----")
    assert same_public_key(load_private_key(pem, passphrase).public_key(), key.public_key())


@pytest.mark.parametrize("key", [P256, RSA2048], ids=["sec1", "pkcs1"])
@pytest.mark.parametrize("passphrase", [None, SECRET], ids=["plain", "encrypted"])
def test_older_forms_of_pem_are_read(key: PrivateKey, passphrase: bytes | None) -> None:
    pem = traditional_pem(key, passphrase)
    assert same_public_key(load_private_key(pem, passphrase).public_key(), key.public_key())


def test_a_passphrase_for_a_key_that_is_not_encrypted_is_ignored() -> None:
    assert same_public_key(load_private_key(private_key_pem(P256), SECRET).public_key(), P256.public_key())


@pytest.mark.parametrize("pem", [private_key_pem(P256, SECRET), traditional_pem(P256, SECRET)], ids=["pkcs8", "older"])
@pytest.mark.parametrize(
    ("passphrase", "rule"),
    [(None, "key_passphrase_missing"), (b"battery staple", "key_passphrase_wrong"), (b"", "key_passphrase_missing")],
)
def test_an_encrypted_key_needs_its_passphrase(pem: bytes, passphrase: bytes | None, rule: str) -> None:
    error = refused(pem, passphrase)
    assert error.rule == rule
    assert "battery" not in error.message


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"not a key",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        private_key_pem(P256)[:100],
        P256.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    ],
    ids=["empty", "text", "garbage", "encrypted garbage", "cut off", "public"],
)
def test_what_is_no_key_is_unreadable_and_is_not_repeated(pem: bytes) -> None:
    error = refused(pem)
    assert error.rule == "key_unreadable"
    assert "BEGIN" not in error.message


@pytest.mark.parametrize(
    "key",
    [x25519.X25519PrivateKey.generate(), ed448.Ed448PrivateKey.generate(), dsa.generate_private_key(2048)],
    ids=["x25519", "ed448", "dsa"],
)
def test_other_kinds_of_keys_are_refused(key: dsa.DSAPrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    assert refused(pem).rule == "key_kind"


@pytest.mark.parametrize("key_type", AUTHORITY_KEY_TYPES)
def test_an_authority_may_have_these_keys(key_type: KeyType) -> None:
    key = generate_key(key_type)
    check_authority_key(key)
    check_authority_key(key.public_key())


@pytest.mark.parametrize(
    "key", [RSA2048, ED25519, ec.generate_private_key(ec.SECP521R1())], ids=["rsa2048", "ed25519", "p521"]
)
def test_an_authority_may_not_have_these_keys(key: PrivateKey) -> None:
    for each in (key, key.public_key()):
        with pytest.raises(InvalidKey) as caught:
            check_authority_key(each)
        assert caught.value.rule == "authority_key_kind"


def test_an_authority_may_not_have_a_small_exponent() -> None:
    with pytest.raises(InvalidKey) as caught:
        check_authority_key(rsa.generate_private_key(public_exponent=3, key_size=3072))
    assert caught.value.rule == "authority_key_kind"


@pytest.mark.parametrize("length", [0, 1024])
def test_a_passphrase_that_openssl_cannot_use_is_refused(length: int) -> None:
    with pytest.raises(InvalidKey) as caught:
        private_key_pem(P256, b"x" * length)
    assert caught.value.rule == "passphrase_length"


def test_the_hash_of_a_signature_follows_the_key() -> None:
    assert isinstance(signing_hash(P256), hashes.SHA256)
    assert isinstance(signing_hash(RSA2048), hashes.SHA256)
    assert isinstance(signing_hash(generate_key(KeyType.P384)), hashes.SHA384)
    assert signing_hash(ED25519) is None


def test_keys_are_named_by_their_public_half() -> None:
    public = P256.public_key()
    again = load_private_key(private_key_pem(P256)).public_key()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public_key_der(public))
    assert public_key_sha256(again) == digest.finalize().hex()
    assert key_id(again) == x509.SubjectKeyIdentifier.from_public_key(public).digest.hex()
    assert not same_public_key(public, RSA2048.public_key())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
@pytest.mark.parametrize("passphrase", [None, SECRET], ids=["plain", "encrypted"])
def test_openssl_reads_our_keys(tmp_path: Path, passphrase: bytes | None) -> None:
    (tmp_path / "tls.key").write_bytes(private_key_pem(P256, passphrase))
    (tmp_path / "secret").write_bytes((passphrase or b"") + b"\n")
    done = subprocess.run(
        ["openssl", "pkey", "-in", "tls.key", "-pubout", "-outform", "DER", "-passin", "file:secret"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert done.stdout == public_key_der(P256.public_key()), done.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
@pytest.mark.parametrize(
    "arguments", [["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], ["-algorithm", "ED25519"]]
)
def test_keys_that_openssl_encrypts_are_read(tmp_path: Path, arguments: list[str]) -> None:
    made = tmp_path / "made.key"
    command = ["openssl", "genpkey", *arguments, "-aes256", "-pass", f"pass:{SECRET.decode()}", "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    key = load_private_key(made.read_bytes(), SECRET)
    shown = subprocess.run(
        ["openssl", "pkey", "-in", str(made), "-passin", f"pass:{SECRET.decode()}", "-pubout", "-outform", "DER"],
        capture_output=True,
        check=True,
    )
    assert shown.stdout == public_key_der(key.public_key())
