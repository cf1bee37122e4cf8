"""`scripts/bench-sds`: sets up the program, then becomes scripts/bench_sds_run.py."""

from __future__ import annotations

import os
import sys

from _environment import PYTHON, ROOT, RUN, Progress, ensure, run_command


def main(arguments: list[str]) -> int:
    ensure(RUN, Progress(total=1))
    sys.stderr.flush()
    run = ROOT / "scripts" / "bench_sds_run.py"
    # In its place, not below it: Ctrl-C and exit codes are its own.
    os.execv(PYTHON, [str(PYTHON), str(run), *arguments])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    run_command(main)
