"""What commands read: files, stdin and passphrases. Bounded, and stdin is given to one reader only."""

from __future__ import annotations

import contextlib
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import click
from cryptography import x509

from citadel_py.cli.options import PASSPHRASE_VARIABLE, STDIN
from citadel_py.cli.session import Session
from citadel_py.core.errors import BadInput, InvalidConfiguration, InvalidKey
from citadel_py.core.pem import load_certificate, load_certificates
from citadel_py.store.files import read_bounded

MAX_INPUT_BYTES = 1 << 20

_MAX_PASSPHRASE_BYTES = 1023  # the library encrypts with no longer one

Opened = TypeVar("Opened")


def read_input(session: Session, source: str, *, flag: str, limit: int = MAX_INPUT_BYTES) -> bytes:
    """All of a file, or of stdin for `-`.

    Raises InvalidConfiguration where it cannot be read or is over `limit` bytes, UsageError where
    two inputs want stdin.
    """
    if source != STDIN:
        return read_bounded(Path(source), limit)
    if session.stdin_taken_by:
        raise click.UsageError(f"{flag} and {session.stdin_taken_by} cannot both read stdin")
    session.stdin_taken_by = flag
    if sys.stdin is None:
        raise InvalidConfiguration(f"{flag} is to be read from stdin, which is closed", rule="stdin_closed")
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise InvalidConfiguration(f"stdin has more than {limit} bytes", rule="file_too_large")
    return data


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Say in which input it is, where what is done inside finds bad input."""
    try:
        yield
    except BadInput as error:
        what = "stdin" if source == STDIN else source
        raise type(error)(f"{what}: {error.message}", rule=error.rule, hint=error.hints) from error


def read_certificates(session: Session, source: str, *, flag: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, in their order, or the one of a DER file. Raises BadInput."""
    data = read_input(session, source, flag=flag)
    with naming(source):
        is_der = data[:1] == b"\x30" and b"-----BEGIN" not in data
        return (load_certificate(data),) if is_der else load_certificates(data)


def read_passphrase(session: Session, source: str | None, *, flag: str = "--passphrase-file") -> bytes | None:
    """The passphrase in a file or on stdin, without the newline at its end; None without a source.

    Raises InvalidConfiguration: `passphrase_empty`, and what read_input raises.
    """
    if source is None:
        return None
    passphrase = read_input(session, source, flag=flag, limit=_MAX_PASSPHRASE_BYTES + 2)
    passphrase = passphrase.removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise InvalidConfiguration(
            f"the passphrase in {source} is empty", rule="passphrase_empty", hint=f"leave {flag} out for no passphrase"
        )
    if source != STDIN:
        _warn_if_readable_by_others(session, Path(source))
    return passphrase


def ask_new_passphrase(session: Session, what: str) -> bytes | None:
    """Ask on the terminal, twice, until both are the same; empty means none."""
    first: str = click.prompt(
        f"Passphrase for {what} (empty: not encrypted)", default="", show_default=False, hide_input=True, err=True
    )
    if not first:
        session.warn(f"{what} will not be encrypted")
        return None
    if click.prompt("Once more", default="", show_default=False, hide_input=True, err=True) == first:
        return first.encode()
    session.warn("the two differ")
    return ask_new_passphrase(session, what)


def with_passphrase(session: Session, source: str | None, open_keys: Callable[[bytes | None], Opened]) -> Opened:
    """What `open_keys` gives for the passphrase of `source`, or one asked for where it turns out to be needed.

    Raises InvalidKey (`key_passphrase_missing`) where nobody is there to ask.
    """
    given = read_passphrase(session, source)
    try:
        return open_keys(given)
    except InvalidKey as error:
        if error.rule != "key_passphrase_missing":
            raise
        if not session.may_prompt:
            hint = f"give it with --passphrase-file FILE, or {PASSPHRASE_VARIABLE}=FILE"
            raise InvalidKey(error.message, rule=error.rule, hint=hint) from error
    text: str = click.prompt("Passphrase", hide_input=True, err=True)
    return open_keys(text.encode())


def _warn_if_readable_by_others(session: Session, path: Path) -> None:
    state = path.stat()
    if stat.S_ISREG(state.st_mode) and state.st_mode & 0o077:
        session.warn(f"others may read the passphrase in {path} (mode {stat.S_IMODE(state.st_mode):04o})")
        session.hint(f"chmod 600 {path}")
