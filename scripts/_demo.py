"""`scripts/demo`: sets up the program and an Envoy, then becomes scripts/demo_run.py."""

from __future__ import annotations

import os

from _environment import PYTHON, ROOT, RUN, Progress, ensure, ensure_envoys, envoy_binary, envoy_versions, run_command


def main(arguments: list[str]) -> int:
    newest = envoy_versions()[:1]
    given = os.environ.get("ENVOY_BIN")
    progress = Progress(total=1 if given else 2)
    ensure(RUN, progress)
    if not given:
        ensure_envoys(newest, progress)
    environment = {**os.environ, "ENVOY_BIN": given or str(envoy_binary(newest[0]))}
    # In its place, not below it: Ctrl-C and exit codes are the demo's own.
    os.execve(PYTHON, [str(PYTHON), str(ROOT / "scripts" / "demo_run.py"), *arguments], environment)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    run_command(main)
