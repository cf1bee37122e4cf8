"""The port that a CA told of, over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from citadel_py.app.learned_port import LearnedPort

CA = "ca.example.org:15012"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ca.json"


def test_what_was_learned_is_known_after_a_restart(path: Path) -> None:
    LearnedPort(path, CA).save(15013)
    assert LearnedPort(path, CA).load() == 15013


def test_what_another_ca_told_is_not_believed(path: Path) -> None:
    LearnedPort(path, CA).save(15013)
    assert LearnedPort(path, "other.example.org:15012").load() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"\xff\xfe",
        b"[1]",
        b'{"ca": "ca.example.org:15012"}',
        b'{"ca": "ca.example.org:15012", "mtls_port": "1"}',
        b'{"ca": "ca.example.org:15012", "mtls_port": 0}',
        b'{"ca": "ca.example.org:15012", "mtls_port": 65536}',
        b'{"ca": "ca.example.org:15012", "mtls_port": 1}' + b" " * 5000,
    ],
)
def test_a_damaged_file_is_as_good_as_none(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert LearnedPort(path, CA).load() is None


def test_without_a_file_nothing_is_known(path: Path) -> None:
    assert LearnedPort(path, CA).load() is None


def test_a_port_that_cannot_be_kept_is_no_failure(tmp_path: Path) -> None:
    LearnedPort(tmp_path / "no such directory" / "ca.json", CA).save(15013)
