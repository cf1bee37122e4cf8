"""How a run is shown: a live view on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo_parts.history import Event, History, ProxyHistory, count
from demo_parts.load import Load
from demo_parts.wire import Side

_FIRST_LINE_S = 1.0
_LINE_EVERY_S = 5.0
_SHOWN_EVENTS = 6


@dataclass(frozen=True)
class State:
    """What is shown."""

    at_s: float
    history: History
    load: Load

    @property
    def requests(self) -> str:
        return f"{count(self.load.requests, 'request')}, {self.load.failures} failed"


Show: TypeAlias = Callable[[State], None]


def screen(console: Console) -> AbstractContextManager[Show]:
    """What shows each state that it is called with, for as long as the block lasts."""
    return _live(console) if console.is_terminal and not console.is_dumb_terminal else _lines(console)


@contextmanager
def _live(console: Console) -> Iterator[Show]:
    with Live(console=console, auto_refresh=False) as live:
        yield lambda state: live.update(_view(state), refresh=True)


@contextmanager
def _lines(console: Console) -> Iterator[Show]:
    lines = _Lines(console)
    yield lines.show


class _Lines:
    """Each event once, and a line about everything soon after the start and every five seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = 0
        self._next_s = _FIRST_LINE_S

    def show(self, state: State) -> None:
        for event in state.history.events[self._told :]:
            self._print(_event_line(event))
        self._told = len(state.history.events)
        if state.at_s >= self._next_s:
            self._next_s = state.at_s - state.at_s % _LINE_EVERY_S + _LINE_EVERY_S
            self._print(_state_line(state))

    def _print(self, line: str) -> None:
        print(line, file=self._console.file, flush=True)


def _state_line(state: State) -> str:
    proxies = [f"{side} {_words(proxy)}" for side, proxy in state.history.proxies.items()]
    return f"{state.at_s:4.0f} s  {', '.join([state.requests, *proxies])}, CA {_up(state.history)}"


def _words(proxy: ProxyHistory) -> str:
    if not proxy.leaves:
        return "not seen yet"
    leaf = proxy.leaves[-1]
    plan = f"ends {_left(leaf.not_after)}" if proxy.is_waiting else f"renews {_left(proxy.renew_at)}"
    return f"{leaf.short} {plan}"


def _event_line(event: Event) -> str:
    return f"{event.at_s:4.0f} s  * {event.text}"


def _view(state: State) -> Group:
    events = [Text(_event_line(event)) for event in state.history.events[-_SHOWN_EVENTS:]]
    return Group(_headline(state), _table(state.history), *events)


def _headline(state: State) -> Text:
    return Text.assemble(
        f"{state.at_s:.0f} s   ",
        (state.requests, "bold red" if state.load.failures else "bold green"),
        "   CA ",
        (_up(state.history), "bold green" if state.history.is_ca_up else "bold red"),
    )


def _table(history: History) -> Table:
    table = Table("proxy", "serial on the wire", "expires", "next renewal", "renewals seen", box=SIMPLE_HEAD)
    for side, proxy in history.proxies.items():
        table.add_row(*_row(side, proxy))
    return table


def _row(side: Side, proxy: ProxyHistory) -> tuple[str, ...]:
    if not proxy.leaves:
        return side, "not seen yet", "", "", ""
    leaf = proxy.leaves[-1]
    return side, leaf.serial, _left(leaf.not_after), _left(proxy.renew_at), str(proxy.renewals)


def _up(history: History) -> str:
    return "up" if history.is_ca_up else "AWAY"


def _left(moment: datetime | None) -> str:
    """Time left in words."""
    if moment is None:
        return "?"
    left_s = (moment - datetime.now(UTC)).total_seconds()
    return f"in {left_s:.0f} s" if left_s > 0 else f"{-left_s:.0f} s ago"
