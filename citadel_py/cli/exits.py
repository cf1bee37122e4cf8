"""What a script sees of an outcome: one table of exit codes, and the one form of an error message."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator, Mapping
from enum import IntEnum

import click

from citadel_py.cli.session import Session, printable
from citadel_py.core.errors import BadInput, CitadelError, Denied, Unavailable, VerificationFailed

PROGRAM = "citadel-py"


class Exit(IntEnum):
    """Exit codes; they mean the same for every command."""

    DONE = 0
    NO = 1
    USAGE = 2
    BAD_INPUT = 3
    UNAVAILABLE = 4
    DENIED = 5
    BUG = 70  # EX_SOFTWARE of sysexits.h
    INTERRUPTED = 130  # 128 + SIGINT, as shells count
    READER_GONE = 141  # 128 + SIGPIPE: whoever read the answer closed the pipe


MEANINGS: Mapping[Exit, str] = {
    Exit.DONE: "done, or the answer is yes",
    Exit.NO: "the answer is no",
    Exit.USAGE: "wrong usage",
    Exit.BAD_INPUT: "bad input or configuration",
    Exit.UNAVAILABLE: "not available now, trying again can help",
    Exit.DENIED: "denied",
    Exit.BUG: "a bug in citadel-py",
    Exit.INTERRUPTED: "interrupted",
    Exit.READER_GONE: "the reader of the output went away",
}

_BY_CLASS: Mapping[type[CitadelError], Exit] = {
    VerificationFailed: Exit.NO,
    BadInput: Exit.BAD_INPUT,
    Unavailable: Exit.UNAVAILABLE,
    Denied: Exit.DENIED,
    CitadelError: Exit.BUG,
}

_SHORT_OF = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
_NETWORK = {
    errno.EADDRINUSE,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
}
_TEMPORARY = frozenset(_SHORT_OF | _NETWORK)


def exit_of(error: BaseException) -> Exit:
    """The exit code of an error that ended a command."""
    match error:
        case CitadelError():
            return next(code for kind, code in _BY_CLASS.items() if isinstance(error, kind))
        case click.Abort() | KeyboardInterrupt():
            return Exit.INTERRUPTED
        case click.ClickException():
            return Exit.USAGE
        case BrokenPipeError():
            return Exit.READER_GONE
        case OSError():
            return Exit.UNAVAILABLE if error.errno in _TEMPORARY else Exit.BAD_INPUT
        case _:
            return Exit.BUG


def report(error: BaseException, session: Session) -> Exit:
    """Tell of an error on stderr and give its exit code. A reader that went away is told nothing."""
    code = exit_of(error)
    if code is Exit.READER_GONE:
        return code
    what, hints = _told(error)
    session.line("error", f"{what}", program=PROGRAM)
    for cause in _causes(error) if session.verbosity == 1 else ():
        session.line("caused by", cause)
    for hint in hints:
        session.line("hint", hint)
    if session.verbosity > 1:
        session.raw("".join(traceback.format_exception(error)))
    return code


def _told(error: BaseException) -> tuple[str, tuple[str, ...]]:
    """The message, lower case and with its rule, and the hints."""
    match error:
        case CitadelError():
            return f"{error.message} [rule {error.rule}]", error.hints
        case click.Abort() | KeyboardInterrupt():
            return "interrupted", ()
        case click.UsageError():
            return _lower(error.format_message()), _hints_on_usage(error)
        case click.ClickException():
            return _lower(error.format_message()), ()
        case OSError():
            return _told_by_system(error), ()
        case _:
            hint = "this is a bug: please report it with the output of the same command and -vv"
            return f"internal error: {type(error).__name__}: {error}", (hint,)


def _hints_on_usage(error: click.UsageError) -> tuple[str, ...]:
    path = error.ctx.command_path if error.ctx else PROGRAM
    if isinstance(error, click.NoSuchOption) and path == PROGRAM:
        return (f"{path} --help", f"options of a command stand after its name: {path} COMMAND {error.option_name} ...")
    return (f"{path} --help",)


def _told_by_system(error: OSError) -> str:
    reason = _lower(error.strerror or type(error).__name__)
    return f"{error.filename}: {reason}" if error.filename else reason


def _causes(error: BaseException) -> Iterator[str]:
    cause = error.__cause__
    while cause is not None:
        yield f"{type(cause).__name__}: {printable(str(cause))}"
        cause = cause.__cause__


def _lower(text: str) -> str:
    """The text as a part of our line: no capital at the start (unless a word is all capitals), no full stop."""
    text = " ".join(text.split()).removesuffix(".")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
