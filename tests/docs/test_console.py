"""What the how-tos show is what the program says: their console blocks are run and compared."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"

# What differs from one run to the next.
_VARYING = (
    (re.compile(r"\b[0-9a-f]{28,64}\b"), "HEX"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "MOMENT"),
    (re.compile(r"\(in [0-9dhms]+\)"), "(in A WHILE)"),
    (re.compile(r"citadel-join-[\w-]+"), "TOKEN"),
)


def steps(page: Path) -> list[tuple[str, str]]:
    """Each command of a page with the output that is shown for it."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def settled(text: str) -> str:
    for pattern, name in _VARYING:
        text = pattern.sub(name, text)
    return text


@pytest.fixture
def shell_environment(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "bin" / "citadel-py"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m citadel_py "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CITADEL_")}
    kept["PYTHONUNBUFFERED"] = "1"  # both streams in the order in which a terminal shows them
    return {**kept, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(DOCS.parent)}


@pytest.mark.parametrize("page", ["../README.md", "how-to/offline.md"])
def test_a_page_shows_what_the_program_says(page: str, tmp_path: Path, shell_environment: dict[str, str]) -> None:
    shown = steps(DOCS / page)
    if shutil.which("openssl") is None and any("openssl " in command for command, _ in shown):
        pytest.skip("no openssl on this machine, which the page uses")
    here = tmp_path / "here"
    here.mkdir()
    mark = "--- end of a step ---"
    # `$?` of one command is what the next one sees.
    script = "".join(f"{command}\ncode=$?; echo '{mark}'; (exit $code)\n" for command, _ in shown)

    done = subprocess.run(
        ["sh", "-c", f"exec 2>&1\n{script}"],
        cwd=here, env=shell_environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip

    outputs = done.stdout.split(f"{mark}\n")[:-1]
    for (command, expected), output in zip(shown, outputs, strict=True):
        assert (command, settled(output)) == (command, settled(expected))
