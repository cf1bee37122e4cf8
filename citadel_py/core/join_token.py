"""One-time join tokens as text: `citadel-join-` and 256 random bits.

Only the digest of a token is ever kept; the text goes to the machine that joins, and nowhere else.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode

PREFIX = "citadel-join-"
ENTROPY_BYTES = 32

# 43 letters of base64url (RFC 4648 section 5, without padding) are 256 bits.
_TOKEN = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_-]{43}", re.ASCII)


def new_token(entropy: bytes) -> tuple[str, bytes]:
    """A token's text and its digest, from 32 bytes that nobody can guess."""
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a join token needs {ENTROPY_BYTES} bytes of entropy")
    text = PREFIX + urlsafe_b64encode(entropy).rstrip(b"=").decode()
    return text, token_digest(text)


def token_digest(text: str) -> bytes:
    """SHA-256 of the text: the name under which a token is kept and found.

    Looking a digest up tells nothing of the token through timing, so no comparison in constant
    time is needed; and with 256 random bits no slow hash either.
    """
    return hashlib.sha256(text.encode()).digest()


def claims_to_be_join_token(text: str) -> bool:
    """True when the prefix says that the text wants to be a join token, well-formed or not."""
    return text.startswith(PREFIX)


def is_join_token(text: str) -> bool:
    """True when the text has the exact form of a join token."""
    return _TOKEN.fullmatch(text) is not None
