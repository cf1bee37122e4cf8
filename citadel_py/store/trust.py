"""What an agent trusted last, over a restart: bundle and revocation lists in one file, replaced as a whole.

Nothing in it is secret. Whether the lists are still good is its reader's business.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import crls_pem, load_crls
from citadel_py.core.errors import BadInput
from citadel_py.core.pem import certificates_pem, load_certificates
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.trust import Trust
from citadel_py.store.files import exists, read_private, write_atomic

FORMAT = 1
_MAX_BYTES = 8 << 20


class TrustFile:
    """One file of mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, trust_domain: TrustDomain) -> tuple[Trust, datetime] | None:
        """What was saved last, and when; None where there is nothing.

        Raises BadInput for a file that is damaged, of another trust domain or of another version, Unavailable
        where it cannot be read.
        """
        if not exists(self._path):
            return None
        value = _opened(read_private(self._path, _MAX_BYTES))
        if value.get("trust_domain") != trust_domain.name:
            raise BadInput(f"{self._path} is not of {trust_domain}", rule="trust_file_foreign")
        try:
            bundle = Bundle.from_object(trust_domain, value["bundle"])
            saved_at = datetime.fromisoformat(value["saved_at"]).astimezone(UTC)
            crls = load_crls(value["crls"].encode()) if value["crls"] else ()
            intermediates = load_certificates(value["intermediates"].encode()) if value["intermediates"] else ()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadInput(f"a part of {self._path} is missing: {error}", rule="trust_file_corrupt") from error
        return Trust(bundle, crls, intermediates), saved_at

    def save(self, trust: Trust, now: datetime) -> None:
        """Replace it, durably, or leave it as it was. Raises Unavailable."""
        value = {
            "saved_at": now.isoformat(),
            "trust_domain": trust.trust_domain.name,
            "bundle": trust.bundle.to_object(),
            "crls": crls_pem(trust.crls).decode(),
            "intermediates": certificates_pem(trust.intermediates).decode(),
        }
        document = {"version": FORMAT, "sha256": _digest(value), "trust": value}
        write_atomic(self._path, json.dumps(document, indent=1).encode() + b"\n")


def _opened(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
        version, sha256, value = document["version"], document["sha256"], document["trust"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput("it is no file of trust", rule="trust_file_corrupt") from error
    if version != FORMAT or not isinstance(value, dict) or sha256 != _digest(value):
        raise BadInput("its content does not match its digest or its version", rule="trust_file_corrupt")
    return value


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
