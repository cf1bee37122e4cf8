"""A sign of life: on a terminal, and only after a while."""

from __future__ import annotations

import io
import time

import pytest

from citadel_py.cli.progress import working

PATIENCE_S = 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def until_shown(text: str, terminal: Terminal) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in terminal.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_takes_long_on_a_terminal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with working("making keys"):
        until_shown("making keys", terminal)


@pytest.mark.parametrize("stream", [Terminal, io.StringIO], ids=["quick", "no terminal"])
def test_what_is_quick_or_off_a_terminal_is_not_told(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = stream()
    monkeypatch.setattr("sys.stderr", told)
    with working("making keys"):
        pass
    assert told.getvalue() == ""
