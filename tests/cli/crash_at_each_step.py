"""Run `issue --force` over and over; the n-th run is killed (SIGKILL) at its n-th change of a file.

Not a test: test_issue_crash.py runs it in a process of its own, since it forks and kills. For each
run it leaves a copy of the output directory, and prints how many there were before one went through.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from citadel_py.cli import authority, founding, run  # noqa: F401 - here, not in each child
from citadel_py.store import ledger  # noqa: F401 - the same
from tests.cli.support import NOW

_CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"})


def main(ca: str, before: str, copies: str) -> int:
    for step in range(1, 100):
        out = Path(copies) / f"{step:02}"
        shutil.copytree(before, out)
        if not _is_killed(step, ca, out):
            sys.stdout.write(f"{step - 1}\n")
            return 0
    return 1


def _is_killed(step: int, ca: str, out: Path) -> bool:
    child = os.fork()
    if child == 0:
        _kill_at(step, out)
        code = run(["issue", "spiffe://example.org/new", "--dir", ca, "--out", str(out), "--force"], clock=lambda: NOW)
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"step {step} ended with exit code {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def _kill_at(step: int, out: Path) -> None:
    """Only changes in the output directory count: the ledger's are its own tests' business."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _CHANGES and str(out) in str(arguments):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
