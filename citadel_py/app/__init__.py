"""The composition root: settings become objects, objects become tasks, and they end in order. Only here is wired."""

from __future__ import annotations

import os

# grpc's core writes to stderr by itself, past our log: a line for each handshake that fails, which
# any port scan makes. It reads this once, when grpc is imported, and that happens below this package.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
