"""`scripts/bench-peers`: sets up the program, builds the peers, then becomes scripts/bench_peers_run.py.

The peers' modules are scripts/peers/*; go.sum pins what they depend on, and everything lands in .cache/peers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from _environment import CACHE, PYTHON, ROOT, RUN, Progress, SetupError, digest, ensure, lock, run_command
from _go import find_go, go_environment

SOURCE = ROOT / "scripts" / "peers"
BUILT = CACHE / "peers"
PROGRAMS = {
    "istio": ".",
    "stepca": "github.com/smallstep/certificates/cmd/step-ca",
    "spire": "github.com/spiffe/spire/cmd/spire-server",
}  # module below scripts/peers, and the package in it to build

WITH_C = ("spire",)  # its SQLite is in C: a C compiler is needed


def main(arguments: list[str]) -> int:
    progress = Progress(total=1 + len(PROGRAMS))
    ensure(RUN, progress)
    if not {"-h", "--help"} & set(arguments):
        for name in PROGRAMS:
            progress.step()
            _ensure_built(name, progress)
    sys.stderr.flush()
    run = ROOT / "scripts" / "bench_peers_run.py"
    # In its place, not below it: Ctrl-C and exit codes are its own.
    os.execv(PYTHON, [str(PYTHON), str(run), *arguments])  # noqa: S606 - no shell is wanted


def _ensure_built(name: str, progress: Progress) -> None:
    with lock(f"peer-{name}", progress) as held:
        if not _is_built(name):
            _build(name, progress, held)
    progress.say(f"{name}: ready")


def _build(name: str, progress: Progress, held: int) -> None:
    """At the lowest priority: it takes minutes, and nobody waits for it but this."""
    progress.say(f"{name}: building (minutes, and a gigabyte in {BUILT.relative_to(ROOT)}, the first time)")
    _stamp(name).unlink(missing_ok=True)
    command: list[str | Path] = [
        "nice",
        "-n",
        "19",
        find_go(progress),
        "build",
        "-trimpath",
        "-o",
        BUILT / "bin" / name,
        PROGRAMS[name],
    ]
    environment = {
        **go_environment(),
        "GOCACHE": str(BUILT / "build"),
        "GOPATH": str(BUILT / "path"),
        "CGO_ENABLED": "1" if name in WITH_C else "0",
    }
    done = subprocess.run(
        command, cwd=SOURCE / name, env=environment, pass_fds=(held,), capture_output=True, text=True, check=False
    )
    if done.returncode:
        end = "".join(f"    {line}\n" for line in done.stderr.splitlines()[-12:])
        raise SetupError(f"{name}: it cannot be built:\n{end}")
    _stamp(name).write_text(_digest(name))


def _is_built(name: str) -> bool:
    return _stamp(name).exists() and _stamp(name).read_text() == _digest(name)


def _digest(name: str) -> str:
    files: list[Path] = sorted(path for path in (SOURCE / name).rglob("*") if path.is_file())
    return digest(b"\0".join(path.read_bytes() for path in files))


def _stamp(name: str) -> Path:
    return BUILT / f"{name}-made-from"


if __name__ == "__main__":
    run_command(main)
