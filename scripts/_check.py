"""`scripts/check`: everything about the source that needs no test.

All checks run: the first failure does not hide the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from _environment import PYTHON, ROOT, TEST, Progress, ensure, run_command

# Modules are run, never their scripts: a script's first line cannot hold a path with a space.
CHECKS: dict[str, Sequence[str | Path]] = {
    "format": [PYTHON, "-m", "ruff", "format", "--check", "."],
    "lint": [PYTHON, "-m", "ruff", "check", "."],
    "types": [PYTHON, "-m", "mypy"],
    "layers": [PYTHON, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-logo"],
    "generated code": [PYTHON, ROOT / "scripts" / "gen-protos", "--check"],
}


def main(arguments: list[str]) -> int:
    if arguments:
        print("usage: scripts/check", file=sys.stderr)
        return 2
    progress = Progress(total=1 + len(CHECKS))
    ensure(TEST, progress)
    failed = [name for name in CHECKS if not passes(name, progress)]
    return 1 if failed else 0


def passes(name: str, progress: Progress) -> bool:
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(CHECKS[name], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    progress.step()
    progress.say(f"{name}: {'failed' if done.returncode else 'passed'} ({time.monotonic() - start:.1f} s)")
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    run_command(main)
