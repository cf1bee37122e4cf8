"""Kills a process at each step that it takes on files: `python -m tests.store.crashing SCENARIO BASE`.

A step is a call that changes something: a file or directory made, its mode set, synced, renamed or
removed. For each number N there is one child, which prepares BASE/N and is killed just before its
Nth step. The children are forked from this process, which has no threads.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citadel_py.store import authority_dir
from citadel_py.store.svids import SVIDFiles
from tests.store.things import Pki, new_held, new_pki

STEPS = ("open", "mkdir", "chmod", "fchmod", "fsync", "replace", "unlink")
PASSPHRASE = b"as the tests have it"

Act = Callable[[Path], None]


@dataclass(frozen=True)
class Scenario:
    """What is there before, and what is interrupted."""

    before: Act
    act: Act


def before_step(number: int, strike: Callable[[], None]) -> None:
    """Have the `number`th step from now on begin with `strike`."""
    left = number

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                strike()
            return call(*arguments, **named)

        return step

    for name in STEPS:
        setattr(os, name, wrap(getattr(os, name)))


def create(pki: Pki, *, offline: bool = False, force: bool = False) -> Act:
    def act(place: Path) -> None:
        authority_dir.create(
            place / "ca",
            root=pki.root,
            intermediate=pki.intermediate,
            bundle=pki.bundle,
            passphrase=PASSPHRASE,
            root_directory=place / "offline" if offline else None,
            force=force,
        )

    return act


def save(pki: Pki) -> Act:
    held = new_held(pki)
    return lambda place: SVIDFiles(place / "svids", report=sys.stderr.write).save(held)


def nothing(_: Path) -> None:
    pass


def in_turn(*acts: Act) -> Act:
    def act(place: Path) -> None:
        for each in acts:
            each(place)

    return act


def scenarios() -> dict[str, Scenario]:
    one, two = new_pki(), new_pki()
    return {
        "new": Scenario(nothing, create(one)),
        "offline": Scenario(nothing, create(one, offline=True)),
        "forced": Scenario(create(one), create(two, force=True)),
        "forced-offline": Scenario(create(one, offline=True), create(two, offline=True, force=True)),
        "again": Scenario(interrupted(create(one, offline=True)), create(two, offline=True)),
        "svid": Scenario(save(one), save(one)),
    }


def interrupted(act: Act) -> Act:
    """Stops it when both keys are written and the set is not complete yet."""

    def stop() -> None:
        raise KeyboardInterrupt

    def interrupt(place: Path) -> None:
        originals = {name: getattr(os, name) for name in STEPS}
        before_step(0, stop)
        write_atomic = authority_dir.write_atomic

        def write(path: Path, *arguments: Any, **named: Any) -> None:
            if path.name == "bundle.json":
                stop()
            write_atomic(path, *arguments, **named)

        authority_dir.write_atomic = write  # type: ignore[attr-defined]  # as the module sees it
        try:
            act(place)
        except KeyboardInterrupt:
            pass
        finally:
            authority_dir.write_atomic = write_atomic  # type: ignore[attr-defined]  # as it was
            for name, call in originals.items():
                setattr(os, name, call)

    return interrupt
