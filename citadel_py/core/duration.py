"""Durations as people write them: `90s`, `1h30m`, `30d`."""

from __future__ import annotations

import re
from datetime import timedelta

from citadel_py.core.errors import BadInput

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)


class InvalidDuration(BadInput):
    """Not a duration such as `1h30m`."""

    code = "invalid_duration"


def parse_duration(text: str) -> timedelta:
    """Read `1d2h3m4s` with any of the parts left out, largest first. Raises InvalidDuration."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise InvalidDuration(f"{text[:40]!a} is not a duration", hint="write durations as 90s, 15m, 1h30m or 30d")
    parts = zip(_UNITS.values(), match.groups(), strict=True)
    return timedelta(seconds=sum(seconds * int(count) for seconds, count in parts if count))


def format_duration(duration: timedelta) -> str:
    """Write whole seconds as `1d2h3m4s`, zero parts left out; negative ones with a minus sign."""
    total = int(duration.total_seconds())
    sign, rest, text = ("-" if total < 0 else ""), abs(total), ""
    for unit, seconds in _UNITS.items():
        count, rest = divmod(rest, seconds)
        if count:
            text += f"{count}{unit}"
    return sign + (text or "0s")
