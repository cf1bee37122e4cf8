"""Keys of workloads and authorities: kinds, encrypted PEM, identifiers, signature hashes.

Only this file and profile.py name algorithms. It never writes a key anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from citadel_py.core.errors import InvalidKey

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
SigningHash: TypeAlias = hashes.SHA256 | hashes.SHA384 | None


class KeyType(StrEnum):
    """Kinds of keys that this program makes itself."""

    P256 = "p256"
    P384 = "p384"
    RSA2048 = "rsa2048"
    RSA3072 = "rsa3072"
    RSA4096 = "rsa4096"


MAX_PASSPHRASE_BYTES = 1023  # PEM_BUFSIZE of OpenSSL, less its end mark

AUTHORITY_KEY_TYPES = (KeyType.P256, KeyType.P384, KeyType.RSA3072, KeyType.RSA4096)


def generate_key(key_type: KeyType) -> PrivateKey:
    """A new private key. RSA takes tens of milliseconds and more: never call it on an event loop."""
    match key_type:
        case KeyType.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.P384:
            return ec.generate_private_key(ec.SECP384R1())
        case _:
            return rsa.generate_private_key(public_exponent=65537, key_size=int(key_type.removeprefix("rsa")))


def private_key_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """PKCS#8 PEM, encrypted when a passphrase is given (RFC 5958).

    Raises InvalidKey (`passphrase_length`) for one that OpenSSL cannot use.
    """
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        if not 1 <= len(passphrase) <= MAX_PASSPHRASE_BYTES:
            raise InvalidKey(
                f"a passphrase of {len(passphrase)} bytes, not of 1 to {MAX_PASSPHRASE_BYTES}", rule="passphrase_length"
            )
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def load_private_key(pem: bytes, passphrase: bytes | None = None) -> PrivateKey:
    """Read a PEM private key (PKCS#8, SEC1, PKCS#1).

    Raises InvalidKey: `key_passphrase_missing`, `key_passphrase_wrong`, `key_unreadable`, `key_kind`.
    A passphrase given for a key that is not encrypted is ignored.
    """
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except TypeError:
        if passphrase is not None:
            return load_private_key(pem, None)
        raise InvalidKey(
            "the private key is encrypted and no passphrase was given", rule="key_passphrase_missing"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        if passphrase is not None and b"ENCRYPTED" in pem:
            raise InvalidKey("the passphrase does not open the private key", rule="key_passphrase_wrong") from error
        raise InvalidKey("not a PEM private key that can be read", rule="key_unreadable") from error
    if not isinstance(key, PrivateKey):
        raise InvalidKey(f"a {type(key).__name__} cannot be used here", rule="key_kind")
    return key


def signing_hash(key: PrivateKey | PublicKey) -> SigningHash:
    """The hash that goes with a signing key: it follows the key's own strength."""
    match key:
        case ed25519.Ed25519PrivateKey() | ed25519.Ed25519PublicKey():
            return None
        case ec.EllipticCurvePrivateKey(key_size=size) | ec.EllipticCurvePublicKey(key_size=size) if size > 256:
            return hashes.SHA384()
        case _:
            return hashes.SHA256()


def sign_message(key: PrivateKey, message: bytes) -> bytes:
    """A detached signature, by the algorithm with which this key signs certificates.

    The message must begin with a text that says what it is for. A certificate or CRL begins with
    0x30 (a DER sequence), so that a signature over text never is one over either of them.
    """
    return signer_of(key)(message)


def signer_of(key: PrivateKey) -> Callable[[bytes], bytes]:
    """What signs bytes as they are, by the algorithm with which this key signs certificates, chosen once.

    Raises InvalidKey (`key_kind`).
    """
    algorithm = signing_hash(key)
    match key:
        case ec.EllipticCurvePrivateKey() if algorithm is not None:
            return partial(key.sign, signature_algorithm=ec.ECDSA(algorithm))
        case rsa.RSAPrivateKey() if algorithm is not None:
            return partial(key.sign, padding=padding.PKCS1v15(), algorithm=algorithm)
        case ed25519.Ed25519PrivateKey():
            return key.sign
    raise InvalidKey(f"a {type(key).__name__} cannot sign", rule="key_kind")


def is_signature_valid(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """True when `sign_message` made this signature over this message with the key's private half."""
    algorithm = signing_hash(key)
    try:
        match key:
            case ec.EllipticCurvePublicKey() if algorithm is not None:
                key.verify(signature, message, ec.ECDSA(algorithm))
            case rsa.RSAPublicKey() if algorithm is not None:
                key.verify(signature, message, padding.PKCS1v15(), algorithm)
            case ed25519.Ed25519PublicKey():
                key.verify(signature, message)
            case _:
                return False
    except InvalidSignature:
        return False
    return True


def check_authority_key(key: PrivateKey | PublicKey) -> None:
    """Raise InvalidKey unless the key is P-256, P-384, or RSA of 3072 to 4096 bits with e = 65537."""
    public_key = key if isinstance(key, PublicKey) else key.public_key()
    match public_key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1()):
            return
        case rsa.RSAPublicKey(key_size=size) if 3072 <= size <= 4096 and public_key.public_numbers().e == 65537:
            return
    raise InvalidKey(
        "an authority's key must be P-256, P-384, or RSA of 3072 to 4096 bits with e = 65537: peers refuse others",
        rule="authority_key_kind",
    )


def public_key_der(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER (RFC 5280 4.1.2.7)."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_key_sha256(key: PublicKey | bytes) -> str:
    """Lower-case hex SHA-256 over the SubjectPublicKeyInfo, which `key` is or has: how the ledger names a key."""
    return hashlib.sha256(key if isinstance(key, bytes) else public_key_der(key)).hexdigest()


def key_id(key: PublicKey) -> str:
    """Lower-case hex of the subject key identifier, method 1 of RFC 5280 4.2.1.2: an authority's id."""
    return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()


def same_public_key(one: PublicKey, other: PublicKey) -> bool:
    """True when both are the same key."""
    return public_key_der(one) == public_key_der(other)
