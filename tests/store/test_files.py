"""store/files.py: whole files, private files, locks."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from citadel_py.core.errors import InvalidConfiguration, Unavailable
from citadel_py.store.files import (
    exists,
    lock_file,
    make_private_dir,
    read_bounded,
    read_private,
    remove_leftovers,
    write_atomic,
)
from tests.store.things import ordinary_user


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("any_umask")
def test_modes_are_as_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    make_private_dir(tmp_path / "a" / "b")
    write_atomic(tmp_path / "a" / "b" / "key", b"secret")
    write_atomic(tmp_path / "a" / "b" / "crt", b"public", mode=0o644)
    assert mode(tmp_path / "a" / "b") == 0o700
    assert mode(tmp_path / "a" / "b" / "key") == 0o600
    assert mode(tmp_path / "a" / "b" / "crt") == 0o644


def test_a_readable_file_that_is_replaced_by_a_private_one_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o666)
    write_atomic(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)


def test_a_reader_sees_the_old_or_the_new_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([65 + number]) * 100_000 for number in range(2)]
    write_atomic(path, contents[0])
    done = threading.Event()

    def write_on() -> None:
        while not done.is_set():
            for content in contents:
                write_atomic(path, content)

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        seen = {path.read_bytes() for _ in range(300)}
    finally:
        done.set()
        writer.join()
    assert seen <= set(contents)


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_write_that_fails_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(Unavailable, match=r"cannot write .*: no space left on device") as caught:
            write_atomic(path, b"new")
    assert caught.value.rule == "file_not_written"
    assert caught.value.hints == ("make room on the file system",)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_writing_where_there_is_no_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        write_atomic(tmp_path / "nowhere" / "file", b"")
    assert caught.value.hints == ("create the directory first",)


def test_leftovers_of_killed_writers_go_and_those_of_writers_at_work_stay(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".key.abc.tmp", ".key.def.tmp", ".other.abc.tmp"))
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path, "key")
    assert set(tmp_path.iterdir()) == {young, other}
    remove_leftovers(tmp_path, "key", older_than=timedelta(0))
    assert set(tmp_path.iterdir()) == {other}


def test_the_temporary_name_of_a_write_is_found_as_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: remove_leftovers(tmp_path, "key", older_than=timedelta(0)))
        write_atomic(tmp_path / "key", b"")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_becomes_private_and_one_in_use_keeps_its_mode(tmp_path: Path) -> None:
    empty, used = tmp_path / "empty", tmp_path / "used"
    for path in (empty, used):
        path.mkdir()
        path.chmod(0o755)
    (used / "file").touch()
    make_private_dir(empty)
    make_private_dir(used)
    assert (mode(empty), mode(used)) == (0o700, 0o755)


def test_a_directory_in_which_others_could_exchange_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tmp_path.chmod(0o775)
    with pytest.raises(InvalidConfiguration) as caught:
        make_private_dir(tmp_path)
    assert caught.value.rule == "directory_writable_by_others"
    assert caught.value.hints[0] == f"chmod go-w {tmp_path}"
    tmp_path.chmod(0o1777)  # as /tmp: nobody may touch the files of others
    make_private_dir(tmp_path)
    assert mode(tmp_path) == 0o1777


def test_a_file_where_the_directory_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="file exists"):
        make_private_dir(tmp_path / "file")


@pytest.mark.parametrize("open_mode", [0o604, 0o640, 0o620, 0o602, 0o610, 0o666])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, open_mode: int) -> None:
    path = tmp_path / "key"
    write_atomic(path, b"secret", mode=open_mode)
    with pytest.raises(InvalidConfiguration, match=f"mode {open_mode:04o}") as caught:
        read_private(path)
    assert caught.value.rule == "key_readable_by_others"
    assert caught.value.hints[0] == f"chmod 600 {path}"
    path.chmod(0o400)
    assert read_private(path) == b"secret"


@pytest.mark.parametrize(
    ("mounted_mode", "is_accepted"), [(0o640, True), (0o440, True), (0o660, False), (0o644, False)]
)
def test_a_key_that_another_user_hands_to_our_group_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, mounted_mode: int, is_accepted: bool
) -> None:
    path = tmp_path / "key"
    write_atomic(path, b"secret", mode=mounted_mode)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if is_accepted:
        assert read_private(path) == b"secret"
    else:
        with pytest.raises(InvalidConfiguration, match="others can read or change it"):
            read_private(path)


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    path.chmod(0o600)
    assert read_bounded(path, 10) == b"x" * 10
    for read in (read_bounded, read_private):
        with pytest.raises(InvalidConfiguration, match="more than 9 bytes") as caught:
            read(path, 9)
        assert caught.value.rule == "file_too_large"


@pytest.mark.parametrize("read", [lambda path: read_bounded(path, 10), read_private])
def test_what_cannot_be_read_is_named(tmp_path: Path, read: object) -> None:
    assert callable(read)
    for path, rule in ((tmp_path / "absent", "file_missing"), (tmp_path, "file_not_readable")):
        with pytest.raises(InvalidConfiguration, match=str(path)) as caught:
            read(path)
        assert caught.value.rule == rule


def test_a_file_of_another_user_is_not_readable(open_to_nobody: Path) -> None:
    path = open_to_nobody / "key"
    write_atomic(path, b"secret", mode=0o000)
    with ordinary_user(), pytest.raises(InvalidConfiguration) as caught:
        read_bounded(path, 10)
    assert caught.value.rule == "file_not_readable"


def test_what_lies_in_a_closed_directory_is_not_taken_for_absent(open_to_nobody: Path) -> None:
    closed = open_to_nobody / "closed"
    closed.mkdir(mode=0o000)
    with ordinary_user(), pytest.raises(InvalidConfiguration):
        exists(closed / "file")
    assert not exists(open_to_nobody / "file")
    assert not exists(Path(__file__) / "file")


def test_a_pipe_can_be_read_like_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"passphrase",))
    writer.start()
    assert read_bounded(pipe, 100) == b"passphrase"
    writer.join()


@pytest.mark.parametrize("name", ["a.lock", "."])
def test_a_lock_has_one_holder_and_is_free_afterwards(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with lock_file(path), pytest.raises(Unavailable, match="locked by another") as caught, lock_file(path):
        pass
    assert caught.value.rule == "locked_by_another"
    with lock_file(path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, citadel_py.store.files as files\n"
        "with files.lock_file(pathlib.Path(sys.argv[1])):\n print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(Unavailable), lock_file(tmp_path / "lock"):
            pass
        holder.kill()
    with lock_file(tmp_path / "lock"):
        pass
