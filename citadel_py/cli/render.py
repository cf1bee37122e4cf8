"""Facts as a person reads them: aligned lines, moments with the time left in words, nothing that drives a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import click

from citadel_py.cli.session import printable
from citadel_py.core.duration import format_duration

Row: TypeAlias = tuple[str, str | Sequence[str]]

_INDENT = "  "
_ROLE_COLOURS = {"leaf": "green", "intermediate": "cyan", "root": "magenta"}


def rfc3339(moment: datetime) -> str:
    """`2030-01-31T12:00:00Z`, whole seconds."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def in_words(duration: timedelta) -> str:
    """The two largest units: `364d23h`, `11h52m`, `59s`."""
    seconds = int(duration.total_seconds())
    for unit, below in ((86400, 3600), (3600, 60)):
        if seconds >= unit:
            return format_duration(timedelta(seconds=seconds // below * below))
    return format_duration(timedelta(seconds=seconds))


def relative(moment: datetime, now: datetime) -> str:
    """`in 11h52m`, `3m ago` or `now`."""
    left = moment - now.replace(microsecond=0)  # certificates know whole seconds
    if abs(left) < timedelta(seconds=1):
        return "now"
    return f"in {in_words(left)}" if left > timedelta(0) else f"{in_words(-left)} ago"


def moment_with_words(moment: datetime, now: datetime) -> str:
    """`2030-01-31T12:00:00Z (in 11h52m)`."""
    return f"{rfc3339(moment)} ({relative(moment, now)})"


def heading(role: str, text: str = "") -> str:
    """The first line of a block; `role` is leaf, intermediate, root or what else the thing is."""
    label = click.style(role, fg=_ROLE_COLOURS.get(role), bold=True)
    return f"{label} {printable(text)}".rstrip() + "\n"


def fields(rows: Iterable[Row]) -> str:
    """One line per value, with the names in one column; what has no value is left out."""
    lines = [(name, each) for name, value in rows for each in ((value,) if isinstance(value, str) else value) if each]
    width = max((len(name) for name, _ in lines), default=0)
    return "".join(f"{_INDENT}{name:{width}}  {printable(each)}\n" for name, each in lines)
