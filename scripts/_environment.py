"""What the scripts set up inside the clone, so that a machine needs nothing but Python 3.11.

    .venv                   the project, editable, with its pinned dependencies
    .cache/envoy-VERSION    one real Envoy each
    .cache/verifiers        linters of certificates, which want dependencies of their own
    .cache/xds-protos       the official Envoy API, which overwrites files of other packages
    .cache/spiffe           a client of the SPIFFE Workload API, whose messages have the names of ours

Each is complete or made again: a stamp that says what it was made from is written last. Runs side by side wait for
each other. Only the standard library may be imported here, and nothing outside the clone is written.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
REQUIREMENTS = ROOT / "requirements"

# Of a user's settings for pip and Python, these would install or import somewhere else than in the environment in hand.
_MISLEADING = ("PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PIP_ROOT", "PIP_TARGET", "PIP_USER", "PYTHONHOME", "PYTHONPATH")
_PIP = ("-I", "-m", "pip", "--disable-pip-version-check", "--no-input")
# Every dependency and everything below it is pinned with hashes, so pip has nothing to resolve; and building a source
# package would fetch build tools that no hash pins.
_PIP_INSTALL = ("install", "--no-deps", "--only-binary=:all:", "--require-hashes", "--progress-bar=off")


class SetupError(Exception):
    """Set-up cannot go on. `hint` is what a person can do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass
class Progress:
    """Numbered lines on standard error: `[1/3] environment: ready`."""

    total: int
    current: int = 0

    def step(self) -> None:
        self.current += 1

    def say(self, text: str) -> None:
        print(f"[{self.current}/{self.total}] {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Environment:
    """A Python environment in `path`, made from `requirements`: file names, each of which contains the one before.

    `project` says that the project itself belongs into it, editable.
    """

    name: str
    path: Path
    requirements: tuple[str, ...]
    project: bool = False

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def wanted(self) -> dict[str, str]:
        """What it is to be made from. The place counts: environments hold absolute paths."""
        sources = {name: digest((REQUIREMENTS / name).read_bytes()) for name in self.requirements}
        return {"place": str(self.path), **sources, **({"project": _project_digest()} if self.project else {})}

    def made_from(self) -> dict[str, str]:
        """What it was made from; empty when it is absent or was interrupted."""
        try:
            return dict(json.loads(self._stamp.read_text())) if self.python.exists() else {}
        except (OSError, ValueError):
            return {}

    def is_complete(self) -> bool:
        return self.wanted().items() <= self.made_from().items()

    def unstamp(self) -> None:
        self._stamp.unlink(missing_ok=True)

    def stamp(self) -> None:
        self._stamp.write_text(json.dumps(self.wanted(), indent=1) + "\n")

    @property
    def _stamp(self) -> Path:
        return self.path / "made-from.json"


RUN = Environment("environment", ROOT / ".venv", ("run.txt",), project=True)
TEST = Environment("environment", ROOT / ".venv", ("run.txt", "test.txt"), project=True)
VERIFIERS = Environment("verifiers", CACHE / "verifiers", ("verifiers.txt",))
XDS_PROTOS = Environment("xds-protos", CACHE / "xds-protos", ("xds-protos.txt",))
SPIFFE = Environment("py-spiffe", CACHE / "spiffe", ("spiffe.txt",))
PIN = Environment("uv", CACHE / "pin", ("pin.txt",))
PYTHON = RUN.python


# ------------------------------------------------------------------------------------------------------- Envoy


def envoy_versions() -> tuple[str, ...]:
    """Every Envoy that is pinned, newest first."""
    versions = [path.stem.removeprefix("envoy-") for path in REQUIREMENTS.glob("envoy-*.txt")]
    return tuple(sorted(versions, key=lambda version: [int(part) for part in version.split(".")], reverse=True))


def envoy_environment(version: str) -> Environment:
    return Environment(f"Envoy {version}", CACHE / f"envoy-{version}", (f"envoy-{version}.txt",))


def envoy_binary(version: str) -> Path | None:
    """The Envoy of this version that was set up; `$ENVOY_BIN` stands for all versions. None: there is none."""
    if given := os.environ.get("ENVOY_BIN"):
        return Path(given)
    environment = envoy_environment(version)
    return environment.path / "bin" / "envoy" if environment.is_complete() else None


# ------------------------------------------------------------------------------------------------------ set-up


def ensure(environment: Environment, progress: Progress) -> None:
    """One step: makes the environment unless it is complete; waits where another run is making it."""
    progress.step()
    complete(environment, progress)
    progress.say(f"{environment.name}: ready")


def complete(environment: Environment, progress: Progress) -> None:
    """As `ensure`, as a part of a step."""
    if not environment.is_complete():
        with lock(environment.path.name, progress) as held:
            if not environment.is_complete():
                _make(environment, progress, held)


def ensure_optional(environment: Environment, progress: Progress) -> None:
    """As `ensure`, for what only some tests want: they say by themselves that they cannot run."""
    try:
        ensure(environment, progress)
    except SetupError as error:
        progress.say(f"{environment.name}: not available here\n{error}")


def ensure_envoys(versions: tuple[str, ...], progress: Progress) -> None:
    for version in versions:
        ensure(envoy_environment(version), progress)


def _make(environment: Environment, progress: Progress, held: int) -> None:
    """Makes it from scratch, or adds what is missing to one that was made from a part of the same."""
    start = time.monotonic()
    count = _count_pins(environment.requirements[-1])
    progress.say(f"{environment.name}: setting up {count} package{'s' if count > 1 else ''} in {environment.path}")
    made_from = environment.made_from()
    environment.unstamp()
    if not (made_from and made_from.items() <= environment.wanted().items()):
        _create(environment, held)
    _install_requirements(environment, progress, held)
    if environment.project:
        _install_project(environment, held)
    environment.stamp()
    progress.say(f"{environment.name}: done in {time.monotonic() - start:.0f} s")


def _create(environment: Environment, held: int) -> None:
    # pip is needed once: the project's own installs into the others.
    pip = () if environment.project else ("--without-pip",)
    shutil.rmtree(environment.path, ignore_errors=True)
    _run(environment, ["-I", "-m", "venv", *pip, str(environment.path)], held, python=Path(sys.executable))


def _install_requirements(environment: Environment, progress: Progress, held: int) -> None:
    def follow(line: str) -> None:
        # Large files only: they explain the wait.
        if fetched := re.match(r"\s*(?:Downloading|Using cached) (?:\S*/)?([^-\s]+-[^-\s]+)\S* \((\d+\.\d MB)\)", line):
            progress.say(f"{environment.name}: fetched {fetched[1]} ({fetched[2]})")
        elif line.startswith("Installing collected packages"):
            progress.say(f"{environment.name}: installing")

    target = () if environment.project else ("--python", str(environment.python))
    requirements = str(REQUIREMENTS / environment.requirements[-1])
    _run(environment, [*_PIP, *target, *_PIP_INSTALL, "-r", requirements], held, follow=follow)


def _install_project(environment: Environment, held: int) -> None:
    install = ("install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))
    _run(environment, [*_PIP, *install], held)


def _run(
    environment: Environment,
    arguments: list[str],
    held: int,
    *,
    python: Path = PYTHON,
    follow: Callable[[str], None] = lambda _: None,
) -> None:
    """Runs Python with these arguments, its output in a log; raises SetupError with the end of it.

    The child holds the lock too: if this process is killed, nobody touches the environment until the child is gone.
    """
    log = CACHE / f"{environment.path.name.lstrip('.')}.log"
    clean = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
    lines = []
    with (
        log.open("w") as file,
        subprocess.Popen(
            [str(python), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=clean,
            cwd=ROOT,
            pass_fds=(held,),
        ) as child,
    ):
        assert child.stdout  # noqa: S101 - for the type checker: it was asked for
        for line in child.stdout:
            file.write(line)
            lines.append(line)
            follow(line)
    if child.returncode:
        end = "".join(f"    {line}" for line in lines[-12:])
        raise SetupError(f"{environment.name}: set-up failed:\n{end}", f"the whole output is in {log}")


@contextmanager
def lock(name: str, progress: Progress) -> Iterator[int]:
    """Holds off other runs; gives the file descriptor that holds, for children to inherit."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name.lstrip('.')}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"{name}: another run is setting it up, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _count_pins(requirements: str) -> int:
    return len(re.findall(r"^\S+==", (REQUIREMENTS / requirements).read_text(), re.MULTILINE))


def _project_digest() -> str:
    """What an editable installation copies out of the clone: metadata, version, entry points."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = {name: document[name] for name in ("build-system", "project")}
    return digest(json.dumps(parts).encode() + (ROOT / "citadel_py" / "__init__.py").read_bytes())


def digest(data: bytes) -> str:
    """The hash that stamps compare."""
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------------------------------------------- commands


def run_command(main: Callable[[list[str]], int]) -> None:
    """Runs a script's `main` with the command line; set-up errors and Ctrl-C become exit codes 4 and 130."""
    try:
        code = main(sys.argv[1:])
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        code = 4
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
