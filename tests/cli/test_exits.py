"""Exit codes and messages: one table, one form."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from shlex import quote

import click
import pytest

from citadel_py.cli.exits import Exit, exit_of, report
from citadel_py.cli.session import Session, printable, wants_color
from citadel_py.core import errors
from tests.cli.support import cli, cli_in_a_process, openssl

TABLE = {
    errors.VerificationFailed: 1,
    errors.BadInput: 3,
    errors.InvalidSpiffeID: 3,
    errors.InvalidCSR: 3,
    errors.InvalidKey: 3,
    errors.InvalidCertificate: 3,
    errors.InvalidBundle: 3,
    errors.InvalidCRL: 3,
    errors.InvalidConfiguration: 3,
    errors.LifetimeRefused: 3,
    errors.Unavailable: 4,
    errors.NotReady: 4,
    errors.LedgerUnavailable: 4,
    errors.LimitReached: 4,
    errors.Denied: 5,
    errors.Unauthenticated: 5,
    errors.PermissionDenied: 5,
    errors.CitadelError: 70,
}


def test_the_table_knows_every_class_of_error() -> None:
    def with_children(kind: type[errors.CitadelError]) -> set[type[errors.CitadelError]]:
        return {kind}.union(*map(with_children, kind.__subclasses__()))

    in_core = {kind for kind in with_children(errors.CitadelError) if kind.__module__ == errors.__name__}
    assert in_core == set(TABLE)


@pytest.mark.parametrize(("kind", "code"), TABLE.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_exit_code_of_an_error(kind: type[errors.CitadelError], code: int) -> None:
    assert exit_of(kind("why")) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (click.UsageError("what"), 2),
        (click.Abort(), 130),
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 3),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 3),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 4),
        (OSError(errno.EIO, "Input/output error", "x"), 4),
        (OSError(errno.EADDRINUSE, "Address already in use"), 4),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 4),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141),
        (ZeroDivisionError("division by zero"), 70),
    ],
    ids=ascii,
)
def test_exit_code_of_an_outside_error(error: BaseException, code: int) -> None:
    assert exit_of(error) == code


def reported(error: BaseException, capsys: pytest.CaptureFixture[str], *, verbosity: int = 0) -> str:
    report(error, Session(verbosity=verbosity))
    return capsys.readouterr().err


def test_message_has_the_rule_and_hints_that_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.InvalidCSR("the key is short", rule="rsa_too_small", hint=["openssl genrsa 2048", "or P-256"])
    assert reported(error, capsys) == (
        "citadel-py: error: the key is short [rule rsa_too_small]\nhint: openssl genrsa 2048\nhint: or P-256\n"
    )


def test_message_cannot_drive_a_terminal_or_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.BadInput("a\x1b[2Jb\nhint: rm -rf /\u202e")
    assert reported(error, capsys) == "citadel-py: error: a\\x1b[2Jb\\nhint: rm -rf /\\u202e [rule bad_input]\n"


def with_cause() -> errors.CitadelError:
    error = errors.Unavailable("cannot write x")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


def test_one_v_names_the_cause_and_two_show_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    quiet, more, most = (reported(with_cause(), capsys, verbosity=count) for count in range(3))
    assert "space left" not in quiet
    assert "caused by: OSError: [Errno 28] No space left on device" in more
    assert "Traceback" not in more
    assert "direct cause of the following exception" in most


@pytest.mark.parametrize("place", ["before", "after"])
def test_verbosity_may_stand_before_or_after_the_command(place: str, tmp_path: Path) -> None:
    rest = ["inspect", tmp_path / "missing"]
    outcome = cli("-vv", *rest) if place == "before" else cli(*rest, "-v", "-v")
    assert "Traceback" in outcome.err


def test_system_errors_name_the_file_in_lower_case(capsys: pytest.CaptureFixture[str]) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/y")
    assert reported(error, capsys) == "citadel-py: error: /x/y: no such file or directory\n"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, None),
        ({"FORCE_COLOR": "1"}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        ({"TERM": "xterm"}, None),
    ],
)
def test_colour_follows_the_environment(environment: dict[str, str], wanted: object) -> None:
    assert wants_color(environment) is wanted


def test_no_colour_off_a_terminal_and_colour_when_forced(web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in cli("inspect", web).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in cli("inspect", web).out


def test_printable_leaves_letters_of_any_script_alone() -> None:
    assert printable("Zürich 東京") == "Zürich 東京"


# What only a process of its own can show


def test_a_bug_exits_with_70_and_without_a_traceback() -> None:
    script = (
        "import sys, citadel_py.cli as cli\n"
        "def broken(*_, **__): raise ZeroDivisionError('oops')\n"
        "cli.program.callback = broken\n"
        "sys.argv = ['citadel-py']\n"
        "sys.exit(cli.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, text=True)
    assert done.returncode == 70
    assert "citadel-py: error: internal error: ZeroDivisionError: oops" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_ends_it_without_a_word(web: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = cli_in_a_process("inspect", web, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (Exit.READER_GONE, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_that_cannot_be_written_is_unavailable(web: Path, unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        done = cli_in_a_process("inspect", web, stdout=full, env=environment)
    assert done.returncode == 4
    assert b"no space left on device" in done.stderr


def test_an_interrupt_exits_with_130(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    command = [sys.executable, "-m", "citadel_py", "inspect", str(tmp_path / "never")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as program:
        writer = os.open(tmp_path / "never", os.O_WRONLY)  # returns when the program has opened it to read
        while program.poll() is None:  # a signal just before the read begins is seen only after it
            program.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(timeout=5)
        os.close(writer)
        assert program.stderr is not None
        err = program.stderr.read()
    assert program.returncode == 130
    assert err.strip().endswith(b"citadel-py: error: interrupted")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_bug(web: Path, tmp_path: Path, closed: str) -> None:
    init = f"init --dir {quote(str(tmp_path / 'new'))} --trust-domain example.org"
    for arguments, code in {f"inspect {quote(str(web))}": 0, init: 0, "inspect -": 3}.items():
        command = f"{quote(sys.executable)} -m citadel_py {arguments} {closed}"
        done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert done.returncode == code, arguments


def test_a_letter_that_the_terminal_cannot_show_is_no_bug(tmp_path: Path) -> None:
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", tmp_path / "k",
        "-out", tmp_path / "c", "-utf8", "-subj", "/CN=東",
    )  # fmt: skip
    done = cli_in_a_process("inspect", tmp_path / "c", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"CN=\u6771" in done.stdout


def test_python_dash_m_runs_the_same_program() -> None:
    assert cli_in_a_process("--version").stdout.startswith(b"citadel-py ")
