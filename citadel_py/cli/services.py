"""What `serve` and `agent` share: the flags that were given, and a run of the service to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from citadel_py.core.errors import CitadelError

Function = TypeVar("Function", bound=Callable[..., Any])

_LOG_FORMATS = ("auto", "json", "console")
_LOG_LEVELS = ("debug", "info", "warning", "error")


def given(flags: Mapping[str, object]) -> dict[str, object]:
    """The flags that stand on the command line; the others are for the environment, the file and the defaults."""
    return {name: value for name, value in flags.items() if value is not None and value != ()}


def common_options(function: Function) -> Function:
    """Options that both services have."""
    for option in reversed(_COMMON):
        function = option(function)
    return function


def run_service(service: Coroutine[Any, Any, None]) -> None:
    """Run it until it stops. Of several errors at once the first that is ours, or the system's, is raised."""
    try:
        asyncio.run(service)
    except BaseExceptionGroup as group:
        ours = group.subgroup(CitadelError) or group.subgroup(OSError)
        raise (_first(ours) if ours else group) from group


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


_COMMON = (
    click.option("--log-format", type=click.Choice(_LOG_FORMATS), help="auto: console on a terminal, else JSON."),
    click.option("--log-level", type=click.Choice(_LOG_LEVELS), help="The least that is logged.  [default: info]"),
    click.option(
        "--config", "config_file", metavar="FILE", type=click.Path(path_type=Path), envvar="CITADEL_CONFIG",
        show_envvar=True, help="TOML file with settings; flags and CITADEL_* variables stand above it.",
    ),
)  # fmt: skip
