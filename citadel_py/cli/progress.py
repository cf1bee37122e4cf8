"""A sign of life on a terminal for what takes longer than half a second; nothing anywhere else."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from citadel_py.cli.session import is_terminal

_PATIENCE_S = 0.5


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show on stderr that `what` is being done, if that is a terminal and it takes its time."""
    if not is_terminal(sys.stderr):
        yield
        return
    done = threading.Event()
    sign = threading.Thread(target=_show, args=(what, done), daemon=True)
    sign.start()
    try:
        yield
    finally:
        done.set()
        sign.join()


def _show(what: str, done: threading.Event) -> None:
    if done.wait(_PATIENCE_S):
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        done.wait()
