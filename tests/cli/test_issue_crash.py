"""`issue` that is killed, runs out of space or meets another one: never parts of two certificates."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from citadel_py.cli.outputs import staging
from citadel_py.core.keys import load_private_key, same_public_key
from citadel_py.core.pem import load_certificates
from tests.cli.support import Outcome, cli, serials_in_ledger

CRASHES = Path(__file__).with_name("crash_at_each_step.py")
ROOT = Path(__file__).parents[2]


def issue(ca: Path, out: Path, *more: object) -> Outcome:
    return cli("issue", "spiffe://example.org/new", "--dir", ca, "--out", out, *more)


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def is_mixed(files: dict[str, bytes]) -> bool:
    """A key beside a chain that is not its own, or beside none."""
    if "tls.key" not in files:
        return False
    key = load_private_key(files["tls.key"])
    leaf = load_certificates(files["tls.crt"])[0] if "tls.crt" in files else None
    return leaf is None or not same_public_key(key.public_key(), leaf.public_key())  # type: ignore[arg-type]


@pytest.fixture
def killed(ca: Path, web: Path, tmp_path: Path) -> list[Path]:
    """The output directories of runs over the set in `web` that were killed, each one step later."""
    (tmp_path / "copies").mkdir()
    command = [sys.executable, *map(str, (CRASHES, ca, web, tmp_path / "copies"))]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    *killed, _ = sorted((tmp_path / "copies").iterdir())
    assert len(killed) == int(done.stdout.split()[-1])
    return killed


def test_a_kill_at_any_step_leaves_the_old_set_the_new_one_or_none_that_works(killed: list[Path], web: Path) -> None:
    old, seen = files_in(web), set()
    for directory in killed:
        files = files_in(directory)
        assert not is_mixed(files), directory.name
        seen.add("old" if files == old else "new" if "tls.key" in files else "incomplete")
    assert seen == {"old", "new", "incomplete"}


def test_the_next_run_completes_what_was_killed_and_removes_its_leftovers(killed: list[Path], ca: Path) -> None:
    for directory in killed:
        assert issue(ca, directory, "--force").code == 0
        assert {path.name for path in directory.iterdir()} == {"tls.crt", "tls.key", "ca.crt"}


def failing_from(call: int, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """Make the n-th and each later call of an os function fail for lack of space."""
    real: Callable[..., object] = getattr(os, function)
    calls = iter(range(1, 1000))

    def fail(*arguments: object, **options: object) -> object:
        if next(calls) >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, function, fail)


@pytest.mark.parametrize("call", range(1, 9))
def test_no_space_at_any_moment_leaves_the_old_set(
    ca: Path, web: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, recorded = files_in(web), len(serials_in_ledger(ca))
    with monkeypatch.context() as patch:
        failing_from(call, patch, "fsync")
        outcome = issue(ca, web, "--force")
    after = files_in(web)
    assert not is_mixed(after)
    if outcome.code:
        assert (outcome.code, outcome.out) == (4, "")
        assert "no space left on device" in outcome.err
    is_recorded = len(serials_in_ledger(ca)) > recorded
    assert ("is signed and in the ledger, but its files are not written" in outcome.err) == (
        is_recorded and outcome.code != 0
    )
    assert after == before or is_recorded
    assert not list(web.glob(".citadel-py-*"))


def test_a_directory_in_use_by_another_run_is_unavailable(ca: Path, web: Path) -> None:
    with staging(web, force=True):
        outcome = issue(ca, web, "--force")
    assert (outcome.code, outcome.rule) == (4, "locked_by_another")


def test_a_stage_that_is_left_changes_nothing(web: Path) -> None:
    before = files_in(web)
    with staging(web, force=True) as stage:
        stage.add("tls.key", b"new")
    assert files_in(web) == before
    assert len(list(web.iterdir())) == len(before)


def test_what_is_in_the_way_of_a_file_is_named(ca: Path, tmp_path: Path) -> None:
    (tmp_path / "o" / "tls.crt").mkdir(parents=True)
    outcome = issue(ca, tmp_path / "o", "--force")
    assert (outcome.code, outcome.rule) == (3, "output_not_a_file")
    assert serials_in_ledger(ca) == []
