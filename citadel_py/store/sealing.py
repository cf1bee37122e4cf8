"""Encryption of small files with a passphrase: one slow derivation for a process, then a fast cipher for each file.

The key comes from the passphrase by scrypt (RFC 7914), 0.2 s and 32 MiB on purpose; its salt stands in
each file, and all files of a process have the same, so that thousands of them cost one derivation.
Each file is AES-256-GCM with a random nonce of 96 bits (NIST SP 800-38D 8.2.2), bound to the name of
what is in it. Nothing here reads or writes files.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from citadel_py.core.errors import BadInput, InvalidKey

# What the OWASP cheat sheet on password storage asks for, in its form with the least memory that is not small.
KDF: Final = "scrypt-n32768-r8-p3"
_N, _R, _P = 1 << 15, 8, 3
_KEY_BYTES: Final = 32
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_MAX_SALTS: Final = 16  # files of other passphrases' times that were mixed in; each costs a derivation


@dataclass(frozen=True, slots=True)
class _Derived:
    """`check` tells a wrong passphrase from a damaged file: the other half of what scrypt gives, told in the file."""

    salt: bytes
    cipher: AESGCM = field(repr=False)
    check: bytes


class Sealer:
    """Usable from several threads."""

    def __init__(self, passphrase: bytes) -> None:
        self._passphrase = passphrase
        self._derived: dict[bytes, _Derived] = {}
        self._lock = threading.Lock()

    def seal(self, data: bytes, name: str) -> dict[str, str]:
        """A box that only the passphrase opens, and only under this name."""
        with self._lock:
            own = next(iter(self._derived.values()), None) or self._derive(os.urandom(_SALT_BYTES))
        nonce = os.urandom(_NONCE_BYTES)
        return {
            "kdf": KDF,
            "salt": own.salt.hex(),
            "check": own.check.hex(),
            "nonce": nonce.hex(),
            "sealed": base64.b64encode(own.cipher.encrypt(nonce, data, name.encode())).decode(),
        }

    def open(self, box: Mapping[str, str], name: str) -> bytes:
        """What was sealed under this name.

        Raises InvalidKey (`key_passphrase_wrong`), BadInput (`sealed_damaged`) for a box that was
        changed or is another one's.
        """
        try:
            salt, check, nonce = (bytes.fromhex(box[part]) for part in ("salt", "check", "nonce"))
            sealed = base64.b64decode(box["sealed"], validate=True)
            is_known = box["kdf"] == KDF and len(salt) == _SALT_BYTES and len(nonce) == _NONCE_BYTES
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise _damaged() from error
        if not is_known:
            raise _damaged()
        with self._lock:
            own = self._derived.get(salt) or self._derive(salt)
        if not hmac.compare_digest(own.check, check):
            raise InvalidKey("the passphrase does not open it", rule="key_passphrase_wrong")
        try:
            return own.cipher.decrypt(nonce, sealed, name.encode())
        except InvalidTag:
            raise _damaged() from None

    def _derive(self, salt: bytes) -> _Derived:
        derived = Scrypt(salt=salt, length=2 * _KEY_BYTES, n=_N, r=_R, p=_P).derive(self._passphrase)
        made = _Derived(salt, AESGCM(derived[:_KEY_BYTES]), derived[_KEY_BYTES:])
        if len(self._derived) < _MAX_SALTS:
            self._derived[salt] = made
        return made


def _damaged() -> BadInput:
    return BadInput("what is encrypted in it was changed, or belongs to another file", rule="sealed_damaged")
