"""Where the CA takes certificates, as it told us: kept over a restart, so that no token is needed to ask again."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from citadel_py.core.errors import CitadelError
from citadel_py.store.files import read_bounded, write_atomic

_MAX_BYTES = 4096


class LearnedPort:
    """The port of one CA, in a file. It is a convenience: what cannot be read or written is not missed."""

    def __init__(self, path: Path, ca: str) -> None:
        self._path = path
        self._ca = ca

    def load(self) -> int | None:
        """The port, if it was learned from this very CA."""
        with suppress(CitadelError, ValueError):
            match json.loads(read_bounded(self._path, _MAX_BYTES)):
                case {"ca": self._ca, "mtls_port": int(port)} if 0 < port <= 65535:
                    return port
        return None

    def save(self, port: int) -> None:
        """Replace what was kept."""
        with suppress(CitadelError):
            write_atomic(self._path, json.dumps({"ca": self._ca, "mtls_port": port}).encode() + b"\n")
