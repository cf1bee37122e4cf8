"""On a terminal the program asks; the terminal here is a real one (a pty)."""

from __future__ import annotations

import os
import pty
import select
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from citadel_py.cli.session import utcnow
from citadel_py.core.keys import check_authority_key, load_private_key
from tests.cli.support import cli, mode_of

PATIENCE_S = 30


def on_a_terminal(*arguments: object, dialogue: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Exit code and all that was shown. Each answer is typed when its question has appeared."""
    command = [sys.executable, "-m", "citadel_py", *map(str, arguments)]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(command[0], command)  # noqa: S606 - the program itself
    shown = ""
    for question, answer in dialogue:
        shown += read_until(terminal, question)
        os.write(terminal, answer.encode())
    shown += read_until(terminal, None)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown


def read_until(terminal: int, question: str | None) -> str:
    """What is shown up to a question, or to the end."""
    shown = ""
    while question is None or question not in shown:
        assert select.select([terminal], [], [], PATIENCE_S)[0], f"no {question!r} after {shown!r}"
        try:
            more = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other side is closed
            more = b""
        if not more:
            break
        shown += more.decode()
    return shown


def init(directory: Path, *more: object, dialogue: Sequence[tuple[str, str]]) -> tuple[int, str]:
    arguments = ("init", "--dir", directory, "--trust-domain", "example.org", *more)
    return on_a_terminal(*arguments, dialogue=dialogue)


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")


def test_init_asks_for_a_passphrase_twice_and_does_not_show_it(tmp_path: Path) -> None:
    dialogue = [("Passphrase for the authority's keys", "open sesame\n"), ("Once more", "open sesame\n")]
    code, shown = init(tmp_path / "ca", dialogue=dialogue)
    assert code == 0
    assert "sesame" not in shown
    check_authority_key(load_private_key((tmp_path / "ca/root/tls.key").read_bytes(), b"open sesame"))
    assert mode_of(tmp_path / "ca/root/tls.key") == 0o600


def test_init_asks_again_when_the_two_differ(tmp_path: Path) -> None:
    first = [("Passphrase", "open sesame\n"), ("Once more", "open barley\n")]
    code, shown = init(tmp_path / "ca", dialogue=[*first, ("Passphrase", "x\n"), ("Once more", "x\n")])
    assert code == 0, shown
    assert "warning: the two differ" in shown
    check_authority_key(load_private_key((tmp_path / "ca/root/tls.key").read_bytes(), b"x"))


def test_init_takes_an_empty_passphrase_as_none_with_a_warning(tmp_path: Path) -> None:
    code, shown = init(tmp_path / "ca", dialogue=[("Passphrase", "\n")])
    assert code == 0
    assert "warning: the authority's keys will not be encrypted" in shown
    check_authority_key(load_private_key((tmp_path / "ca/root/tls.key").read_bytes()))


def test_init_asks_nothing_before_it_has_found_that_it_may_not(ca: Path) -> None:
    code, shown = init(ca, dialogue=[])
    assert code == 3
    assert "Passphrase" not in shown


def test_control_c_at_a_question_is_an_interrupt(tmp_path: Path) -> None:
    code, shown = init(tmp_path / "ca", dialogue=[("Passphrase", "\x03")])
    assert code == 130
    assert "citadel-py: error: interrupted" in shown
    assert not (tmp_path / "ca").exists()


def test_issue_asks_for_the_passphrase_of_an_encrypted_authority_only(tmp_path: Path) -> None:
    for name, passphrase, dialogue in (
        ("locked", b"open sesame", [("Passphrase: ", "open sesame\n")]),
        ("plain", b"", []),
    ):
        source = ("--passphrase-file", "-") if passphrase else ()
        making = ("init", "--dir", tmp_path / name, "--trust-domain", "example.org", *source)
        assert cli(*making, stdin=passphrase, now=utcnow()).code == 0
        issue = ("issue", "spiffe://example.org/web", "--dir", tmp_path / name, "--out", tmp_path / f"{name}-workload")
        code, shown = on_a_terminal(*issue, dialogue=dialogue)
        assert code == 0, shown


def test_a_dumb_terminal_gets_no_colour_and_another_one_does(web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in on_a_terminal("inspect", web, dialogue=[])[1]
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" in on_a_terminal("inspect", web, dialogue=[])[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in on_a_terminal("inspect", web, dialogue=[])[1]
