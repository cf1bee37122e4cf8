"""Takes secrets out of whatever is about to be logged: private keys, tokens, passphrases.

The last line of defence, not the first: code does not log secrets to begin with. It works on fields
by their name and on all text by its shape, and makes text harmless for a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from citadel_py.core import join_token

REMOVED = "[removed]"
MAX_TEXT = 16_384  # one field; a traceback fits, a dumped message does not fill the disk
_MAX_DEPTH = 8

_PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)

_SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:token|password|passphrase|private_?key|key_pem|authorization|jwt|cookie|credential)s?$",
    re.IGNORECASE,
)
_BEARER = r"(?<=[Bb][Ee][Aa][Rr][Ee][Rr][ \t])[ \t]*[^\s'\",;\\]{8,}"
_SECRETS = {  # how each kind begins, and how it goes on
    # a PEM block: to the end of the text where the end of the block is missing
    "-----BEGIN ": r"[^-\n]{0,40}PRIVATE KEY-----.*?(?:-----END [^-\n]{0,40}PRIVATE KEY-----|\Z)",
    # base64 of an unencrypted key whose first line is missing: PKCS#8 of EC and RSA, then SEC1 and PKCS#1
    "MI": r"(?:[GH][\w+/]{1,3}AgEAMB|I[\w+/]{3}[IJ]BADAN|GkAgEBBD|I[\w+/]{3}[IJ]BAAK)[\w+/=\s\\]{20,}",
    "MHcCAQEE": r"[\w+/=\s\\]{20,}",
    "eyJ": r"[\w-]{8,}\.[\w-]+\.[\w-]*",  # a JSON Web Token: this is base64url of '{"'
    join_token.PREFIX: r"[\w-]+",
    " ": _BEARER,
    "\t": _BEARER,
}
_SECRET_TEXT = re.compile(
    "|".join(re.escape(begins) + goes_on for begins, goes_on in _SECRETS.items()), re.DOTALL | re.ASCII
)
_BEGINNINGS = tuple(_SECRETS)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def redact(value: object) -> object:
    """The value as plain text, numbers, lists and dictionaries, without anything secret."""
    return _redact(value, 0)


def is_harmless(fields: Mapping[str, object]) -> bool:
    """Whether `redact` would leave these fields as they are. False where that takes a closer look."""
    texts: list[str] = []
    for name, value in fields.items():
        if isinstance(value, str):
            texts.append(value)
        elif value is not None and not isinstance(value, int | float):
            return False
        if _judge_name(name) != (name, False):
            return False
    return _is_plain("|".join(texts))


def redact_text(text: str) -> str:
    """The text with secrets replaced by `[removed]` and control characters escaped."""
    if _is_plain(text):
        return text
    text = _SECRET_TEXT.sub(REMOVED, text)
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}... ({len(text)} characters)"
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def _is_plain(text: str) -> bool:
    """A look that is cheap, and enough for most text: no secret begins in it, and it is short and printable."""
    return len(text) <= MAX_TEXT and text.isprintable() and not any(map(text.__contains__, _BEGINNINGS))


def _redact(value: object, depth: int) -> object:
    match value:
        case str():
            return redact_text(value)
        case None | bool() | int() | float():
            return value
        case bytes() | bytearray():
            return redact_text(value.decode("utf-8", "backslashreplace"))
        case _ if isinstance(value, _PrivateKey) or depth == _MAX_DEPTH:
            return REMOVED
        case _:
            return _redact_compound(value, depth + 1)


def _redact_compound(value: object, depth: int) -> object:
    if is_dataclass(value) and type(value).__str__ is object.__str__:
        value = {each.name: getattr(value, each.name) for each in fields(value) if each.repr}
    if isinstance(value, Mapping):
        return dict(_redact_named(str(name), each, depth) for name, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact(each, depth) for each in value]
    return redact_text(str(value))


def _redact_named(name: str, value: object, depth: int) -> tuple[str, object]:
    shown, is_secret = _judge_name(name)
    if is_secret and value is not None and not isinstance(value, bool):
        return shown, REMOVED
    return shown, _redact(value, depth)


@lru_cache(maxsize=512)  # the names of fields are few and come again and again
def _judge_name(name: str) -> tuple[str, bool]:
    return redact_text(name), _SECRET_NAME.search(name) is not None
