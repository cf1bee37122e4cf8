"""Reading private keys from files, with errors that say which file and where the passphrase comes from."""

from __future__ import annotations

from pathlib import Path

from citadel_py.core.errors import InvalidKey
from citadel_py.core.keys import PrivateKey, load_private_key
from citadel_py.store.files import read_private

PASSPHRASE_RULES = ("key_passphrase_missing", "key_passphrase_wrong")
_HINT = "give the passphrase with --passphrase-file FILE or CITADEL_PASSPHRASE_FILE=FILE"


def read_key(path: Path, *, passphrase: bytes | None) -> PrivateKey:
    """The key in a file that only its owner can read. Raises InvalidConfiguration, InvalidKey, Unavailable."""
    return decode_key(read_private(path), path, passphrase=passphrase)


def decode_key(pem: bytes, path: Path, *, passphrase: bytes | None) -> PrivateKey:
    """The key in text that was read from `path`. Raises InvalidKey."""
    try:
        return load_private_key(pem, passphrase)
    except InvalidKey as error:
        hint = _HINT if error.rule in PASSPHRASE_RULES else error.hints
        raise InvalidKey(f"{path}: {error.message}", rule=error.rule, hint=hint) from error
