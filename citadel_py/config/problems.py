"""What pydantic found wrong, in words that name the place: also within tables of a list, counted from 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pydantic_core import ErrorDetails

from citadel_py.config.sockets import SocketSettings

_MAX_SHOWN = 100
_SINGULAR = {"sockets": "socket"}


def is_missing(problem: ErrorDetails) -> bool:
    """Whether the setting is not there at all."""
    return problem["type"] == "missing"


def told_within(name: str, inner: Sequence[str | int], value: object, problem: ErrorDetails) -> str:
    """One line on a setting that has this value. `inner` leads from there to what is wrong."""
    place, rest, value = _innermost(name, inner, value)
    if is_missing(problem):
        return f"{place}: {rest[0]} is not set"
    if problem["type"] == "extra_forbidden":
        return f"{place}: {_unknown(str(rest[0]))}"
    text, shown = problem["msg"].removeprefix("Value error, "), ascii(value)[:_MAX_SHOWN]
    but = "" if shown in text else f", not {shown}"
    return f"{place}: {text[:1].lower()}{text[1:]}{but}"


def _innermost(place: str, inner: Sequence[str | int], value: object) -> tuple[str, Sequence[str | int], object]:
    """As far in as the value goes. Names that are not in it, such as those of the alternatives of a type, stay."""
    for at, step in enumerate(inner):
        if isinstance(value, list | tuple) and isinstance(step, int):
            value = value[step]
            place = f"{_SINGULAR.get(place, f'{place}: number')} {step + 1}{_of_socket(value)}"
        elif isinstance(value, dict) and step in value and step in SocketSettings.model_fields:
            place, value = f"{place}: {step}", value[step]
        else:
            return place, inner[at:], value
    return place, (), value


def _of_socket(value: object) -> str:
    """Its path tells a table apart better than its number."""
    path = value.get("path") if isinstance(value, dict) else None
    return f" ({path[:120]})" if isinstance(path, str) else ""


def _unknown(name: str, known: Iterable[str] = SocketSettings.model_fields) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"unknown setting {name[:60]!a}: " + (
        f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"
    )
