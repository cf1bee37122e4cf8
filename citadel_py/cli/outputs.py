"""The files of one certificate, put into a directory so that no moment shows parts of two of them.

A directory either holds a set that belongs together or lacks its key; it never holds the key of
one certificate beside the chain of another, wherever the program or the machine stops.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from citadel_py.core.errors import InvalidConfiguration
from citadel_py.store.files import (
    PRIVATE_FILE,
    PUBLIC_FILE,
    lock_file,
    make_private_dir,
    not_written,
    sync_directory,
    write_atomic,
)

CHAIN, KEY, PKCS12, BUNDLE = "tls.crt", "tls.key", "tls.p12", "ca.crt"

_SECRET = (KEY, PKCS12)
_IN_ORDER = (BUNDLE, CHAIN, *_SECRET)  # the key comes last: a set without it is visibly not done
_STAGE_PREFIX = ".citadel-py-"


@dataclass(frozen=True, slots=True)
class Stage:
    """A place beside the final one, on the same file system."""

    directory: Path
    place: Path

    def add(self, name: str, data: bytes) -> None:
        """Write a file of the new set, durably, out of sight. Raises Unavailable (`file_not_written`)."""
        write_atomic(self.place / name, data, mode=PRIVATE_FILE if name in _SECRET else PUBLIC_FILE)

    def commit(self) -> tuple[Path, ...]:
        """Put the set in place; these are its files. Raises Unavailable (`file_not_written`).

        The old key and chain go first, so that what is in between is incomplete and never mixed.
        """
        names = [name for name in _IN_ORDER if (self.place / name).exists()]
        try:
            self._remove_old()
            for name in names:
                (self.place / name).replace(self.directory / name)
            sync_directory(self.directory)
        except OSError as error:
            raise not_written(self.directory, error) from error
        return tuple(self.directory / name for name in names)

    def _remove_old(self) -> None:
        for name in (*_SECRET, CHAIN):
            (self.directory / name).unlink(missing_ok=True)
        sync_directory(self.directory)


@contextlib.contextmanager
def staging(directory: Path, *, force: bool) -> Iterator[Stage]:
    """A stage for new files of `directory`, which is made (0700) and locked meanwhile.

    Raises InvalidConfiguration (`output_exists`) where a key is there and `force` is not given,
    (`output_is_authority`, `output_not_a_file`) where the files must not go there at all, and
    Unavailable (`locked_by_another`).
    """
    is_new = not directory.exists()
    make_private_dir(directory)
    with lock_file(directory):
        _check_destination(directory, force=force)
        for leftover in directory.glob(f"{_STAGE_PREFIX}*"):  # of a run that was killed: we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        place = _make_stage(directory)
        try:
            yield Stage(directory, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
            if is_new:
                with contextlib.suppress(OSError):  # it stays unless it is empty
                    directory.rmdir()


def _make_stage(directory: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=_STAGE_PREFIX, dir=directory))
    except OSError as error:
        raise not_written(directory, error) from error


def _check_destination(directory: Path, *, force: bool) -> None:
    if (directory / "bundle.json").exists():
        raise InvalidConfiguration(
            f"{directory} is an authority's directory", rule="output_is_authority", hint=f"--out {directory}-workload"
        )
    for name in _IN_ORDER:
        path = directory / name
        if path.exists() and not path.is_file():
            raise InvalidConfiguration(f"{path} is in the way: it is not a file", rule="output_not_a_file")
        if name in _SECRET and path.exists() and not force:
            raise InvalidConfiguration(
                f"{path} exists and would be overwritten",
                rule="output_exists",
                hint="--force replaces it and its certificate",
            )
