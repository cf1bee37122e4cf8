"""PKCS#12 with AES-256 and SHA-256 (PBES2), which OpenSSL 1.1, Java 8u301 and Windows 10 1709 and later read."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import PrivateFormat, pkcs12

from citadel_py.core.keys import PrivateKey
from citadel_py.core.x509svid import X509SVID

_KDF_ROUNDS = 600_000  # OWASP's figure for PBKDF2 with SHA-256; a tenth of a second or two


def pkcs12_store(svid: X509SVID, key: PrivateKey, passphrase: bytes) -> bytes:
    """Key, leaf and intermediates under the ID as the friendly name; the root is not in it."""
    encryption = (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(_KDF_ROUNDS)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(SHA256())
        .build(passphrase)
    )
    leaf, *intermediates = svid.chain
    return pkcs12.serialize_key_and_certificates(str(svid.id).encode(), key, leaf, intermediates, encryption)
