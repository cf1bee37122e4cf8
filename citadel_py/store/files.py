"""Files that hold secrets and state: written whole or not at all, readable by their owner only.

Nothing here knows what is in a file. Never open a live SQLite file with these functions: closing
any descriptor of it drops the locks that SQLite holds in this process (POSIX advisory locks).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from citadel_py.core.errors import CitadelError, InvalidConfiguration, Unavailable

MAX_KEY_BYTES = 1 << 16  # an RSA-4096 key in PEM has 3,300
PRIVATE_FILE = 0o600
PUBLIC_FILE = 0o644
_PRIVATE_DIRECTORY = 0o700
_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

_CONFIGURATION_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})
_WRITE_HINTS = {
    errno.ENOSPC: "make room on the file system",
    errno.EDQUOT: "make room in the quota of this user",
    errno.EROFS: "the file system is mounted read-only",
    errno.EACCES: "give the user that runs this program write access to the directory",
    errno.EPERM: "give the user that runs this program write access to the directory",
    errno.ENOENT: "create the directory first",
}


def write_atomic(path: Path, data: bytes, *, mode: int = PRIVATE_FILE) -> None:
    """Replace the file; durable on return. A reader, and a crash at any point, sees the old or the new content.

    The mode is set as given, whatever the umask. Raises Unavailable (`file_not_written`).
    """
    try:
        temporary = _write_temporary(path, data, mode)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise not_written(path, error) from error


def remove_leftovers(directory: Path, names: str, *, older_than: timedelta = timedelta(hours=1)) -> None:
    """Remove what killed writers of files called `names` (a glob) left behind.

    A writer that is at work now is younger than `older_than`.
    """
    limit = time.time() - older_than.total_seconds()
    for path in directory.glob(f".{names}.*.tmp"):
        with contextlib.suppress(OSError):  # it costs space, nothing else
            if path.lstat().st_mtime <= limit:
                path.unlink()


def exists(path: Path) -> bool:
    """Whether there is a file or directory. Raises InvalidConfiguration, Unavailable where that cannot be seen."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _not_read(path, error) from error
    return True


def make_private_dir(path: Path) -> None:
    """Make the directory, and its parents, for its owner only (0700).

    One that is there already is made private if it is empty; one that holds files keeps its mode,
    since it may be anybody's. Raises InvalidConfiguration (`directory_writable_by_others`) where
    others could exchange the files in it, Unavailable where it cannot be made.
    """
    try:
        if _make_directory(path):
            return
        state = path.stat()
        if state.st_uid == os.geteuid() and state.st_mode & 0o077 and not any(path.iterdir()):
            path.chmod(_PRIVATE_DIRECTORY)
            return
    except OSError as error:
        raise not_written(path, error) from error
    check_writable_by_us_alone(path, state)


def check_writable_by_us_alone(path: Path, state: os.stat_result) -> None:
    """Raise InvalidConfiguration (`directory_writable_by_others`) where others could exchange files in a directory.

    In a sticky directory, such as /tmp, nobody may exchange the files of others.
    """
    if state.st_mode & _MAY_WRITE and not state.st_mode & stat.S_ISVTX:
        raise InvalidConfiguration(
            f"others may write in the directory {path}",
            rule="directory_writable_by_others",
            hint=(f"chmod go-w {path}", "or choose a new directory inside it"),
        )


def read_bounded(path: Path, limit: int) -> bytes:
    """The whole content of a file or pipe of at most `limit` bytes.

    Raises InvalidConfiguration (`file_missing`, `file_too_large`, `file_not_readable`), Unavailable
    (`file_not_read`) where trying again can help.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _not_read(path, error) from error
    return _check_size(path, data, limit)


def read_private(path: Path, limit: int = MAX_KEY_BYTES) -> bytes:
    """The content of a file that holds a key, as `read_bounded`.

    Refuses (InvalidConfiguration, `key_readable_by_others`) a file of ours that group or others may
    read. One that another user, such as root, hands to us through our group may be 0640: that is
    how keys are mounted into containers.
    """
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            data = file.read(limit + 1)
    except OSError as error:
        raise _not_read(path, error) from error
    return _check_size(path, data, limit)


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the only lock on a file (made if absent, and left there) or on an existing directory.

    The kernel lets go of it when this process ends, however it ends. Raises Unavailable
    (`locked_by_another`) at once where somebody else holds it.
    """
    try:
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        descriptor = os.open(path, flags | os.O_CLOEXEC, PRIVATE_FILE)
    except OSError as error:
        raise not_written(path, error) from error
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make names that were added to or removed from a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def not_written(path: Path, error: OSError) -> Unavailable:
    """What to raise where the operating system did not let us write."""
    hint = _WRITE_HINTS.get(error.errno or 0, ())
    return Unavailable(f"cannot write {path}: {_reason(error)}", rule="file_not_written", hint=hint)


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def _make_directory(path: Path) -> bool:
    """True when it was made, False when it was there. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(_PRIVATE_DIRECTORY)
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    path.chmod(_PRIVATE_DIRECTORY)  # an inherited set-group-id bit or a narrow umask changes nothing
    sync_directory(path.parent)
    return True


def _check_private(path: Path, state: os.stat_result) -> None:
    refused = 0o077 if state.st_uid == os.geteuid() else 0o037
    if state.st_mode & refused:
        raise InvalidConfiguration(
            f"{path} holds a key and has mode {stat.S_IMODE(state.st_mode):04o}: others can read or change it",
            rule="key_readable_by_others",
            hint=(f"chmod 600 {path}", "replace the key if somebody may have read it"),
        )


def _check_size(path: Path, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise InvalidConfiguration(f"{path} has more than {limit} bytes", rule="file_too_large")
    return data


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Unavailable(f"{path} is locked by another process", rule="locked_by_another") from None
    except OSError as error:
        raise not_written(path, error) from error


def _not_read(path: Path, error: OSError) -> CitadelError:
    message = f"cannot read {path}: {_reason(error)}"
    if error.errno in _CONFIGURATION_ERRNOS:
        rule = "file_missing" if error.errno == errno.ENOENT else "file_not_readable"
        return InvalidConfiguration(message, rule=rule)
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "run as the user that owns it, or let this user read it"
        return InvalidConfiguration(message, rule="file_not_readable", hint=hint)
    return Unavailable(message, rule="file_not_read")


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
