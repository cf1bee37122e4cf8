"""A Unix socket's path: who may own it, who may reach it, and how it is given up.

The socket is the credential of whoever connects (grpcio tells nothing about the peer), so it is never
more open than its mode says, not even for a moment, and never taken from a server that is alive.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from citadel_py.core.errors import InvalidConfiguration, Unavailable

MAX_PATH_BYTES = 107  # sockaddr_un: 108 with the final NUL
DIRECTORY_MODE = 0o750
MAX_MODE = 0o660
_NARROW_UMASK = 0o177
_LOCK_TRIES = 100
_SCHEME = "unix:"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`unix:PATH` or `unix:///absolute/path`."""

    path: Path

    @classmethod
    def parse(cls, text: str) -> UnixAddress:
        """Raises InvalidConfiguration: `socket_address`, `socket_path_too_long`."""
        rest = text.removeprefix(_SCHEME)
        if rest.startswith("///"):
            rest = rest[2:]
        if not text.startswith(_SCHEME) or not rest or rest.startswith("//") or "\0" in rest:
            raise InvalidConfiguration(
                f"{text[:200]!a} is not the address of a Unix socket",
                rule="socket_address",
                hint="write it as unix:/run/citadel-py/sds.sock",
            )
        length = len(os.fsencode(rest))
        if length > MAX_PATH_BYTES:
            raise InvalidConfiguration(
                f"the socket path {rest} has {length} bytes, a Unix socket's may have {MAX_PATH_BYTES}",
                rule="socket_path_too_long",
                hint="choose a directory with a shorter name, or a path relative to the working directory",
            )
        return cls(Path(rest))

    @property
    def target(self) -> str:
        """As gRPC takes it, which reads `%` as the start of an escape."""
        return _SCHEME + str(self.path).replace("%", "%25")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.path}"


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect to a socket: its mode, and the user and group to whom it is given; -1 leaves them."""

    mode: int = MAX_MODE
    uid: int = -1
    gid: int = -1


class OwnedSocket:
    """The right to a socket path: a locked file beside it, held until `release`.

    Raises InvalidConfiguration where the path cannot be a socket of ours, Unavailable
    (`socket_in_use`) where another server lives on it.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, path: Path) -> Self:
        """Make the directory, take the lock, and see that nobody else serves there."""
        _make_directory(path.parent)
        _check_directory(path.parent)
        owned = cls(path, _lock(_lock_path(path), path))
        try:
            _check_is_free(path)
        except BaseException:
            owned._unlock()
            raise
        return owned

    @contextmanager
    def private(self) -> Iterator[None]:
        """While a socket is bound in here, only its owner can connect to it."""
        umask = os.umask(_NARROW_UMASK)
        try:
            yield
        finally:
            os.umask(umask)

    def open_to(self, access: Access) -> None:
        """Give it to whom it is for, and then let them in: never the ones of before with the mode of now."""
        if access.mode & ~MAX_MODE:
            raise InvalidConfiguration(
                f"socket mode {access.mode:04o} is wider than {MAX_MODE:04o}", rule="socket_mode_too_open"
            )
        if (access.uid, access.gid) != (-1, -1):  # a sandbox may forbid the call, whatever it asks for
            self._give(access)
        self.path.chmod(access.mode)

    def _give(self, access: Access) -> None:
        try:
            os.chown(self.path, access.uid, access.gid)
        except PermissionError as error:
            raise InvalidConfiguration(
                f"{self.path} cannot be given to user {access.uid} and group {access.gid} (-1: as it is)",
                rule="socket_owner_not_permitted",
                hint="name a group that the agent's user is in, or run the agent with CAP_CHOWN",
            ) from error

    def release(self) -> None:
        """Remove the socket and the lock; both are ours as long as the lock is held."""
        if _is_socket(self.path):
            self.path.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        _lock_path(self.path).unlink(missing_ok=True)
        os.close(self._lock)


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfiguration(
            f"cannot make the directory {directory} of the socket: {error.strerror}", rule="socket_directory"
        ) from error


def _check_directory(directory: Path) -> None:
    mode = directory.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise InvalidConfiguration(
            f"anybody may replace files in {directory}",
            rule="socket_directory_writable",
            hint=f"chmod o-w {directory}",
        )


def _lock(lock_path: Path, path: Path) -> int:
    """The descriptor of the lock file, locked. A file that its owner removed meanwhile is not the lock."""
    for _ in range(_LOCK_TRIES):
        descriptor = _open(lock_path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise _in_use(path, "another agent") from error
        if _is_same_file(descriptor, lock_path):
            return descriptor
        os.close(descriptor)
    raise _in_use(path, "somebody who keeps replacing the lock file")


def _open(lock_path: Path) -> int:
    try:
        return os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InvalidConfiguration(
            f"cannot make the lock file {lock_path}: {error.strerror}", rule="socket_lock_unusable"
        ) from error


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _check_is_free(path: Path) -> None:
    """A socket that nobody listens on may be replaced; nothing else may."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidConfiguration(
            f"{path} exists and is not a socket", rule="socket_path_taken", hint="choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        refused = probe.connect_ex(os.fspath(path))
    if refused != errno.ECONNREFUSED:
        raise _in_use(path, "a server")
    path.unlink(missing_ok=True)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _in_use(path: Path, who: str) -> Unavailable:
    return Unavailable(f"{who} serves {path} already", rule="socket_in_use", hint="stop it, or choose another path")
