"""What the load learns from each response about the certificates of the handshake below it.

Both Envoys put the certificate that their peer presented into a header, so what is counted as a
renewal is what went over the wire, not what somebody intended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from cryptography import x509


class Side(StrEnum):
    """The two ends of the mTLS connection."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True)
class Leaf:
    """A certificate that was presented: its serial number in lower-case hex, and its end."""

    serial: str
    not_after: datetime

    @property
    def short(self) -> str:
        """Enough of the serial number for people to tell two apart."""
        return self.serial[:8]


# Envoy's substitution commands, and who fills them in: the server sees the client, and the other way round.
SERVER_HEADERS = {"x-client-certificate": "%DOWNSTREAM_PEER_CERT%"}
CLIENT_HEADERS = {"x-server-certificate": "%UPSTREAM_PEER_CERT%"}


def leaves(headers: Mapping[str, str]) -> dict[Side, Leaf]:
    """Who presented what in the handshake of this response."""
    return {side: _leaf(headers[f"x-{side}-certificate"]) for side in Side}


@lru_cache(maxsize=64)
def _leaf(escaped: str) -> Leaf:
    certificate = x509.load_pem_x509_certificate(unquote_to_bytes(escaped))
    return Leaf(f"{certificate.serial_number:x}", certificate.not_valid_after_utc)
