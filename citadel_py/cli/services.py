"""What `serve` and `agent` share: the flags that were given, and a run of the service to its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from citadel_py.cli.options import FILE, PASSPHRASE_VARIABLE, STDIN
from citadel_py.core.errors import CitadelError

Function = TypeVar("Function", bound=Callable[..., Any])

_LOG_FORMATS = ("auto", "json", "console")
_LOG_LEVELS = ("debug", "info", "warning", "error")


def given(flags: Mapping[str, object], section: str, fallbacks: Mapping[str, str]) -> dict[str, object]:
    """The flags that stand on the command line; the others are for the environment, the file and the defaults.

    `fallbacks` are variables that all commands know (CITADEL_DIR): one counts where neither the flag
    nor the service's own variable (CITADEL_SERVE__DIR) is there.
    """
    found = {name: value for name, value in flags.items() if value is not None and value != ()}
    for name, variable in fallbacks.items():
        value = os.environ.get(variable)
        if value and not is_set(name, section, found):
            found[name] = value
    if found.get("passphrase_file") == STDIN:
        found["passphrase_file"] = "/dev/stdin"  # noqa: S105 - the name of a file
    return found


def is_set(name: str, section: str, flags: Mapping[str, object]) -> bool:
    """Whether a flag or the service's own variable gives this setting."""
    return name in flags or f"CITADEL_{section.upper()}__{name.upper()}" in os.environ


def passphrase_file(help_text: str) -> Callable[[Function], Function]:
    """`--passphrase-file` as other commands have it; its variable is a fallback of `given`."""
    variable = f"[env var: {PASSPHRASE_VARIABLE}]"
    return click.option("--passphrase-file", metavar="F", type=FILE, help=f"{help_text} - is stdin.  {variable}")


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
    click.option("--shutdown-grace", metavar="DURATION", help="How long a stop may take.  [default: 20s]"),
    click.option("--log-format", type=click.Choice(_LOG_FORMATS), help="auto: console on a terminal, else JSON."),
    click.option("--log-level", type=click.Choice(_LOG_LEVELS), help="The least that is logged.  [default: info]"),
    click.option(
        "--config", "config_file", metavar="FILE", type=click.Path(path_type=Path), envvar="CITADEL_CONFIG",
        show_envvar=True, help="TOML file with settings; flags and CITADEL_* variables stand above it.",
    ),
)  # fmt: skip
