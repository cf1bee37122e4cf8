"""The files that an agent writes for other programs, as its settings say: store, hooks and the task between them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from citadel_py.agent.hooks import MAX_PID_FILE, Command, Hook, Signal
from citadel_py.agent.outputs import MODES, Outputs
from citadel_py.app.runtime import uniform, utcnow
from citadel_py.config import SocketSettings
from citadel_py.obs.metrics import AgentMetrics
from citadel_py.store.file_set import FileSet, open_file_set
from citadel_py.store.files import read_bounded


def open_files(settings: SocketSettings) -> AbstractContextManager[FileSet | None]:
    """The directory of `out`, ours alone within the block; None without one. Raises CitadelError."""
    return open_file_set(settings.out, MODES) if settings.out else nullcontext()


def new_outputs(settings: SocketSettings, files: FileSet, metrics: AgentMetrics) -> Outputs:
    """Writes to `files` and runs the hooks of the settings."""
    return Outputs(files.replace, list(_hooks(settings)), metrics, now=utcnow, uniform=uniform)


def _hooks(settings: SocketSettings) -> Iterator[Hook]:
    if settings.exec:
        yield Command(settings.exec)
    if settings.signal_pid_file:
        read = partial(read_bounded, settings.signal_pid_file, MAX_PID_FILE)
        yield Signal(read, signal.Signals[f"SIG{settings.signal}"])
