"""What a process and its children have used, as Linux tells it in /proc (proc_pid_stat(5)). It only reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from citadel_py.core.errors import Unavailable

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all below it, children that have ended and were waited for included."""

    cpu_s: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    cpu_ticks: int
    rss_pages: int


def usage(pid: int) -> Usage:
    """CPU time (user and system) and resident memory. Raises Unavailable where /proc does not tell."""
    stats = dict(_all())
    if pid not in stats:
        raise Unavailable(
            f"the use of process {pid} cannot be read from {_PROC}",
            rule="bench_needs_proc",
            hint="bench measures on Linux only, and only a server that lives",
        )
    tree = [stats[each] for each in _tree(pid, stats)]
    return Usage(
        sum(each.cpu_ticks for each in tree) / os.sysconf("SC_CLK_TCK"),
        sum(each.rss_pages for each in tree) * os.sysconf("SC_PAGE_SIZE"),
    )


def _tree(root: int, stats: dict[int, _Stat]) -> set[int]:
    found, added = {root}, {root}
    while added:
        added = {pid for pid, stat in stats.items() if stat.parent in found} - found
        found |= added
    return found


def _all() -> Iterator[tuple[int, _Stat]]:
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:  # it ended meanwhile
            continue
        yield int(path.parent.name), _parse(text)


def _parse(text: str) -> _Stat:
    """The name in parentheses may hold anything; what follows the last one is numbers. Field 3 comes first here."""
    fields = text.rpartition(")")[2].split()
    return _Stat(parent=int(fields[1]), cpu_ticks=sum(map(int, fields[11:15])), rss_pages=int(fields[21]))
