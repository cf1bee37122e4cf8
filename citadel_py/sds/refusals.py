"""The text of a refusal (NACK), made fit to be kept: without key material, bounded, on one line.

Envoy can answer with the text dump of the whole secret, private key included, so the text never
goes anywhere as it came.
"""

from __future__ import annotations

import re
from typing import Final

MAX_REFUSAL = 300  # characters
REMOVED: Final = "[removed]"

# Where Envoy's own words begin, behind the dump of the message that broke a constraint.
_CONSTRAINT = "Proto constraint validation failed"
# From the first of these on there may be key material: fields of a dumped secret, PEM, long base64 (which is
# told from Envoy's long names of errors by what is not a letter).
_UNSAFE = re.compile(
    r"private_key|inline_(?:bytes|string)|certificate_chain|-----\s*BEGIN"
    r"|(?=[A-Za-z]*[0-9+/=_-])[A-Za-z0-9+/=_-]{40,}|[A-Za-z]{60,}"
)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def redact_refusal(message: str) -> str:
    """What may be logged and kept of the text of a NACK."""
    start = message.rfind(_CONSTRAINT)
    text = message[max(start, 0) :]
    if unsafe := _UNSAFE.search(text):
        text = text[: unsafe.start()] + REMOVED
    text = _UNPRINTABLE.sub(" ", text).strip()
    return text if len(text) <= MAX_REFUSAL else text[:MAX_REFUSAL] + "..."
