"""`scripts/test`: the checks and then every test; with arguments only pytest, with these arguments.

`CITADEL_ENVOY_VERSIONS` chooses the Envoys that the tests meet: versions with spaces between them, or `all`; without it
the newest and the oldest. `ENVOY_BIN` puts one binary in the place of them all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from _environment import (
    PYTHON,
    ROOT,
    SPIFFE,
    TEST,
    VERIFIERS,
    XDS_PROTOS,
    Progress,
    SetupError,
    ensure,
    ensure_envoys,
    ensure_optional,
    envoy_binary,
    envoy_versions,
    run_command,
)
from _go import ensure_go_programs


def main(arguments: list[str]) -> int:
    versions = () if os.environ.get("ENVOY_BIN") else chosen_envoys()
    progress = Progress(total=len(versions) + (6 if arguments else 7))
    ensure(TEST, progress)
    ensure_envoys(versions, progress)
    ensure_optional(VERIFIERS, progress)
    ensure_optional(XDS_PROTOS, progress)
    ensure_optional(SPIFFE, progress)
    ensure_go_programs(progress)
    if not arguments:
        progress.step()
        progress.say("checks")
        if failed := subprocess.run([sys.executable, ROOT / "scripts" / "_check.py"], check=False).returncode:
            return failed
    progress.step()
    progress.say("tests")
    become_pytest(arguments, versions)
    return 0


def chosen_envoys() -> tuple[str, ...]:
    pinned = envoy_versions()
    chosen = os.environ.get("CITADEL_ENVOY_VERSIONS", f"{pinned[0]} {pinned[-1]}")
    versions = pinned if chosen == "all" else tuple(dict.fromkeys(chosen.split()))
    if unknown := set(versions) - set(pinned):
        raise SetupError(f"no such Envoy is pinned: {' '.join(sorted(unknown))}", f"pinned are: {' '.join(pinned)}")
    return versions


def become_pytest(arguments: list[str], versions: tuple[str, ...]) -> None:
    envoys = os.pathsep.join(f"{version}={envoy_binary(version)}" for version in versions)
    environment = {**os.environ, "CITADEL_TEST_ENVOYS": envoys}
    if not any(Path(argument.partition("::")[0]).exists() for argument in arguments):
        os.chdir(ROOT)  # no paths from where the caller is: what pyproject.toml names
    command = [str(PYTHON), "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), *arguments]
    os.execve(PYTHON, command, environment)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    run_command(main)
