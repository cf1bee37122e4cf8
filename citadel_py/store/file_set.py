"""A directory of files that change together: whoever reads sees one set, also after a crash at any step.

    DIR/..set-XXXXXXXX/NAME    the files of one set, never changed once it is in use
    DIR/..data                 link to the set that counts: replacing it is the change
    DIR/NAME                   link to ..data/NAME, where programs look

Kubernetes mounts Secrets in the same form. A reader of several files follows `..data` once and reads
all of them there; the set before the current one is kept for those who have just done so. What is in
the files is not known here.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from citadel_py.core.errors import InvalidConfiguration
from citadel_py.store.files import (
    PRIVATE_FILE,
    check_writable_by_us_alone,
    exists,
    lock_file,
    make_private_dir,
    not_written,
    sync_directory,
)

CURRENT: Final = "..data"
_PREFIX: Final = "..set-"
_NEW: Final = "..new"
_SET_MODE: Final = 0o755  # who may come here, the directory above says; who may read a file, its own mode


@contextmanager
def open_file_set(directory: Path, modes: Mapping[str, int]) -> Iterator[FileSet]:
    """The set of files with these names and modes, ours alone within the block.

    The directory is made if absent (0700); one that is there keeps its mode. Raises
    InvalidConfiguration (`output_taken`, `directory_writable_by_others`), Unavailable
    (`locked_by_another`, `file_not_written`).
    """
    _prepare(directory)
    with lock_file(directory):
        files = FileSet(directory, modes)
        files.tidy()
        yield files


class FileSet:
    """Use `open_file_set`. Raises InvalidConfiguration (`output_taken`) where something else has one of the names."""

    def __init__(self, directory: Path, modes: Mapping[str, int]) -> None:
        self._directory = directory
        self._modes = modes
        for name in (CURRENT, *modes):
            self._check_is_ours(name)

    def replace(self, contents: Mapping[str, bytes]) -> bool:
        """Put these in the place of all files, durably; False where they are there already.

        Raises Unavailable (`file_not_written`): the files are those from before, or already these, but not durable.
        """
        try:
            if self._holds(contents):
                self._link_names()
                return False
            previous, new = self._current(), self._write(contents)
            self._point_to(new)
            self._link_names()
            self._remove_all_but({new.name, previous})
        except OSError as error:
            raise not_written(self._directory, error) from error
        return True

    def tidy(self) -> None:
        """Remove what a killed writer left, keys among it, as far as that is possible."""
        self._remove_all_but({self._current()})

    def _write(self, contents: Mapping[str, bytes]) -> Path:
        """A new set, durable, that nobody looks at yet."""
        new = Path(tempfile.mkdtemp(dir=self._directory, prefix=_PREFIX))
        try:
            for name, mode in self._modes.items():
                _write_new(new / name, contents[name], mode)
            new.chmod(_SET_MODE)
            sync_directory(new)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return new

    def _point_to(self, new: Path) -> None:
        """The change: one rename."""
        link = self._directory / _NEW
        link.unlink(missing_ok=True)
        link.symlink_to(new.name)
        link.replace(self._directory / CURRENT)
        sync_directory(self._directory)

    def _link_names(self) -> None:
        """Needed once, after the first set; a name that is linked shows whatever is current."""
        missing = [name for name in self._modes if not (self._directory / name).is_symlink()]
        for name in missing:
            (self._directory / name).symlink_to(f"{CURRENT}/{name}")
        if missing:
            sync_directory(self._directory)

    def _holds(self, contents: Mapping[str, bytes]) -> bool:
        current = self._directory / CURRENT
        try:
            return all((current / name).read_bytes() == contents[name] for name in self._modes)
        except FileNotFoundError:
            return False

    def _current(self) -> str:
        """The name of the set that counts; empty where there is none."""
        try:
            return (self._directory / CURRENT).readlink().name
        except FileNotFoundError:
            return ""

    def _remove_all_but(self, kept: set[str]) -> None:
        for path in self._directory.glob(f"{_PREFIX}*"):
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)  # what stays costs space, and the next change tries again

    def _check_is_ours(self, name: str) -> None:
        """Files that somebody else put there, such as a key, are never overwritten."""
        path = self._directory / name
        target = "" if name == CURRENT else f"{CURRENT}/{name}"
        if path.is_symlink():
            found = os.fspath(path.readlink())
            if found == target or (name == CURRENT and found.startswith(_PREFIX)):
                return
        elif not path.exists():
            return
        raise InvalidConfiguration(
            f"{path} is there already and was not made by an agent",
            rule="output_taken",
            hint=("choose another directory", f"or move it away: mv {path} {path}.old"),
        )


def _prepare(directory: Path) -> None:
    if not exists(directory):
        make_private_dir(directory)
    try:
        if not directory.is_dir():
            raise InvalidConfiguration(f"{directory} is no directory", rule="output_taken", hint="choose another one")
        check_writable_by_us_alone(directory, directory.stat())
    except OSError as error:
        raise not_written(directory, error) from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
