"""A Unix socket's path: addresses, permissions, and never taking it from somebody who lives there."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest

from citadel_py.core.errors import CitadelError, InvalidConfiguration, Unavailable
from citadel_py.sds.socket import Access, OwnedSocket, UnixAddress


def listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def rule_of(path: Path) -> str:
    with pytest.raises(CitadelError) as refused:
        OwnedSocket.claim(path)
    return refused.value.rule


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:/run/sds.sock", "/run/sds.sock"),
        ("unix:///run/sds.sock", "/run/sds.sock"),
        ("unix:run/sds.sock", "run/sds.sock"),
        ("unix:/run/with space/sds.sock", "/run/with space/sds.sock"),
    ],
)
def test_an_address_names_a_path(text: str, path: str) -> None:
    assert UnixAddress.parse(text).path == Path(path)


@pytest.mark.parametrize(
    "text", ["", "unix:", "/run/sds.sock", "unix://host/sds.sock", "unix-abstract:name", "tcp:1.2.3.4:5", "unix:a\0b"]
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        UnixAddress.parse(text)
    assert refused.value.rule == "socket_address"


def test_the_longest_path_is_107_bytes() -> None:
    UnixAddress.parse("unix:/" + "x" * 106)
    for path in ("/" + "x" * 107, "/" + "\N{LATIN SMALL LETTER E WITH ACUTE}" * 54):
        with pytest.raises(InvalidConfiguration, match="107") as refused:
            UnixAddress.parse(f"unix:{path}")
        assert refused.value.rule == "socket_path_too_long"


def test_a_claimed_path_gets_a_directory_that_others_cannot_enter(tmp_path: Path) -> None:
    OwnedSocket.claim(tmp_path / "run" / "sds.sock").release()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) & 0o027 == 0


def test_a_claimed_path_cannot_be_claimed_again_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    owned = OwnedSocket.claim(path)
    assert rule_of(path) == "socket_in_use"
    owned.release()
    OwnedSocket.claim(path).release()


def test_release_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    owned = OwnedSocket.claim(path)
    with listening(path):
        owned.release()
    assert list(tmp_path.iterdir()) == []


def test_a_live_socket_of_another_program_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    with listening(path):
        assert rule_of(path) == "socket_in_use"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    listening(path).close()
    OwnedSocket.claim(path).release()


def test_a_file_at_the_path_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    path.write_text("mine")
    assert rule_of(path) == "socket_path_taken"
    assert path.read_text() == "mine"


@pytest.mark.parametrize("place", ["file/sds.sock", "file/below/sds.sock"])
def test_a_file_in_the_place_of_the_directory_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    assert rule_of(tmp_path / place) == "socket_directory"


def test_a_directory_where_anybody_may_replace_files_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert rule_of(tmp_path / "sds.sock") == "socket_directory_writable"
    tmp_path.chmod(0o1777)  # as /tmp
    OwnedSocket.claim(tmp_path / "sds.sock").release()


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "sds.sock.lock").symlink_to(tmp_path / "elsewhere")
    assert rule_of(tmp_path / "sds.sock") == "socket_lock_unusable"
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_file_left_by_a_killed_agent_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "sds.sock.lock").touch()
    OwnedSocket.claim(tmp_path / "sds.sock").release()


def test_a_lock_file_that_its_owner_removes_at_this_very_moment_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "sds.sock", fcntl.flock
    removed: list[int] = []

    def flock_too_late(descriptor: int, how: int) -> None:
        if not removed:
            (tmp_path / "sds.sock.lock").unlink()
            removed.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr("citadel_py.sds.socket.fcntl.flock", flock_too_late)
    owned = OwnedSocket.claim(path)
    assert rule_of(path) == "socket_in_use"
    owned.release()


def test_a_socket_is_closed_to_others_from_the_moment_it_is_bound(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    owned = OwnedSocket.claim(path)
    umask = os.umask(0)
    try:
        with owned.private(), listening(path):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        assert os.umask(0) == 0
    finally:
        os.umask(umask)
        owned.release()


def test_a_mode_that_lets_everybody_in_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    owned = OwnedSocket.claim(path)
    with listening(path):
        owned.open_to(Access(0o600))
        with pytest.raises(InvalidConfiguration) as refused:
            owned.open_to(Access(0o666))
        assert refused.value.rule == "socket_mode_too_open"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    owned.release()


def test_unavailable_means_that_another_try_can_help(tmp_path: Path) -> None:
    owned = OwnedSocket.claim(tmp_path / "sds.sock")
    with pytest.raises(Unavailable):
        OwnedSocket.claim(tmp_path / "sds.sock")
    owned.release()
