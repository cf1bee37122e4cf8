"""One run of one command: its clock, how talkative it is, and the two streams it speaks on.

The answer goes to stdout and everything else to stderr. Nothing else in this package prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

import click

JSON_VERSION = 1  # of every document; grows when a field changes its meaning or goes away

_STYLES = {"error": "red", "warning": "yellow", "note": "cyan", "hint": "green", "caused by": "magenta"}


def utcnow() -> datetime:
    """The wall clock, aware UTC."""
    return datetime.now(UTC)


def wants_color(environment: Mapping[str, str]) -> bool | None:
    """False and True where the environment says so, None for 'only on a terminal' (no-color.org)."""
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return False if environment.get("TERM") == "dumb" else None


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is at the other end; a stream that is closed is None."""
    return stream is not None and stream.isatty()


def printable(text: str) -> str:
    """The text with everything that is not printable escaped: names in a certificate cannot drive a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


@dataclass
class Session:
    """What the commands of one run share."""

    clock: Callable[[], datetime] = utcnow
    color: bool | None = field(default_factory=lambda: wants_color(os.environ))
    verbosity: int = 0
    stdin_taken_by: str | None = None

    def now(self) -> datetime:
        """The moment of this run; read it once per command."""
        return self.clock()

    @property
    def may_prompt(self) -> bool:
        """A person is there to be asked."""
        return is_terminal(sys.stdin) and is_terminal(sys.stderr)

    def answer(self, text: str | bytes) -> None:
        """Write the answer to stdout, as it is."""
        click.echo(text, nl=False, color=self.color)

    def answer_json(self, document: Mapping[str, Any]) -> None:
        """Write the one JSON document of this run."""
        self.answer(json.dumps({"version": JSON_VERSION, **document}, indent=2) + "\n")

    def note(self, text: str) -> None:
        self.line("note", text)

    def warn(self, text: str) -> None:
        self.line("warning", text)

    def hint(self, text: str) -> None:
        self.line("hint", text)

    def line(self, kind: str, text: str, *, program: str = "") -> None:
        """One line on stderr: `note: ...`, or `citadel-py: error: ...`."""
        label = click.style(f"{kind}:", fg=_STYLES[kind], bold=True)
        prefix = f"{program}: " if program else ""
        click.echo(f"{prefix}{label} {printable(text)}", err=True, color=self.color)

    def raw(self, text: str) -> None:
        """Text for stderr that is ours already."""
        click.echo(text, err=True, nl=False, color=self.color)
