"""Interrupts work at each step that it takes on files; by itself, kills a process at each of them:

    python -m tests.store.crashing SCENARIO BASE

A step is a call that changes something: a file or directory made, its mode set, synced, renamed or
removed. For each N there is a child that is killed just before its Nth step in BASE/N, until one
gets to its end. Children are forked here, where no thread is around.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

from citadel_py.core.spiffe import SpiffeID
from citadel_py.store import authority_dir, sealing
from citadel_py.store.file_set import open_file_set
from citadel_py.store.svids import SVIDFiles
from tests.store.things import WEB, Pki, new_held, new_pki

PASSPHRASE = b"correct horse"
IDENTITIES = 3

MODES = {"tls.crt": 0o644, "tls.key": 0o600, "ca.crt": 0o644}
STEPS = ("open", "mkdir", "chmod", "fchmod", "fsync", "symlink", "replace", "unlink", "rmdir")

Act: TypeAlias = Callable[[Path], None]


@contextmanager
def before_step(number: int, strike: Callable[[], None]) -> Iterator[None]:
    """Have the `number`th step within the block begin with `strike`."""
    left = number

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                strike()
            return call(*arguments, **named)

        return step

    with ExitStack() as stack:
        for name in STEPS:
            stack.enter_context(mock.patch.object(os, name, wrapped(getattr(os, name))))
        yield


def create(pki: Pki, *, offline: bool = False, force: bool = False) -> Act:
    def act(place: Path) -> None:
        authority_dir.create(
            place / "ca",
            root=pki.root,
            intermediate=pki.intermediate,
            bundle=pki.bundle,
            passphrase=None,
            root_directory=place / "offline" if offline else None,
            force=force,
        )

    return act


def save(pki: Pki, *, passphrase: bytes | None = None, identities: int = 1) -> Act:
    """SVIDs of several identities, one after the other, by one process."""
    held = [new_held(pki, id) for id in (WEB, *(one_of_many(number) for number in range(1, identities)))]

    def act(place: Path) -> None:
        files = SVIDFiles(place / "svids", passphrase, report=print)
        for each in held:
            files.save(each)

    return act


def encrypt_by_reading(place: Path) -> None:
    SVIDFiles(place / "svids", PASSPHRASE, report=print).load(WEB)


@contextmanager
def quick_derivation() -> Iterator[None]:
    """What is slow on purpose would be slow at each step."""
    with mock.patch.multiple(sealing, _N=2, _P=1):
        yield


def one_of_many(number: int) -> SpiffeID:
    return SpiffeID.parse(f"spiffe://example.org/many/{number}")


def replace_files(*contents: str) -> Act:
    """All files of a set hold the same: so one sees where they are mixed."""

    def act(place: Path) -> None:
        with open_file_set(place / "out", MODES) as files:
            for content in contents:
                files.replace(dict.fromkeys(MODES, content.encode()))

    return act


def crash(act: Act, place: Path, step: int) -> bool:
    """Do it in a child that is killed before this step; False where it came to its end, and well."""
    child = os.fork()
    if child == 0:
        with before_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            act(place)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"the child in {place} ended with {status}")
    return status == signal.SIGKILL


def crashed_late(act: Act) -> Act:
    """A first attempt that got far: killed when the keys are written and the set is not complete yet."""
    with tempfile.TemporaryDirectory() as scratch:
        places = (made(Path(scratch) / str(step)) for step in itertools.count(1))
        steps = next(step for step, place in enumerate(places, 1) if not crash(act, place, step))

    def prepare(place: Path) -> None:
        crash(act, place, steps - 8)
        if not (place / "offline" / "tls.key").exists() or (place / "ca" / "bundle.json").exists():
            raise RuntimeError("the first attempt did not get as far as it should")

    return prepare


def scenario(name: str) -> tuple[Act, Act]:
    """What is there before, and what is interrupted."""
    one, two = new_pki(), new_pki()
    many = partial(save, passphrase=PASSPHRASE, identities=IDENTITIES)
    scenarios: dict[str, Callable[[], tuple[Act, Act]]] = {
        "new": lambda: (nothing, create(one)),
        "offline": lambda: (nothing, create(one, offline=True)),
        "forced": lambda: (create(one), create(two, force=True)),
        "forced-offline": lambda: (create(one, offline=True), create(two, offline=True, force=True)),
        "second-attempt": lambda: (crashed_late(create(one, offline=True)), create(two, offline=True)),
        "svid": lambda: (save(one), save(two)),
        "sealed-svids": lambda: (many(one), many(two)),
        "sealing": lambda: (save(one), encrypt_by_reading),
    }
    return scenarios[name]()


def nothing(_: Path) -> None:
    pass


def made(place: Path) -> Path:
    place.mkdir()
    return place


FILE_SETS = {
    "first-file-set": (nothing, replace_files("one")),
    "file-set": (replace_files("one", "two"), replace_files("three")),
}


def main(name: str, base: str) -> None:
    before, act = FILE_SETS.get(name) or scenario(name)
    with quick_derivation():
        for step in range(1, 1000):
            place = made(Path(base) / str(step))
            before(place)
            if not crash(act, place, step):
                return
    raise RuntimeError("it never came to its end")


if __name__ == "__main__":
    main(*sys.argv[1:])
