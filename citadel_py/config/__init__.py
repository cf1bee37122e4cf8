"""Settings of `serve` and `agent`: one frozen model each, from flags, environment, a TOML file and defaults.

A flag stands above a `CITADEL_SERVE__*` or `CITADEL_AGENT__*` variable, a variable above the file, the
file above the default. An unknown name is an error, and every error says where its value came from.
Nothing here opens what the settings point to, except the TOML file itself.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from citadel_py.config.agent import AgentSettings
from citadel_py.config.base import Settings
from citadel_py.config.problems import is_missing, told_within
from citadel_py.config.serve import ServeSettings
from citadel_py.config.sockets import SocketSettings
from citadel_py.config.values import Address, FederatedFile, parse_address
from citadel_py.core.errors import InvalidConfiguration

__all__ = [
    "Address",
    "AgentSettings",
    "FederatedFile",
    "ServeSettings",
    "Settings",
    "SocketSettings",
    "load_agent",
    "load_serve",
    "parse_address",
]

MAX_FILE_BYTES = 1 << 20
FILE_VARIABLE = "CITADEL_CONFIG"
SEARCHED_FILES = (Path("citadel.toml"), Path("/etc/citadel-py/citadel.toml"))


def load_serve(flags: Mapping[str, object], config_file: Path | None = None) -> ServeSettings:
    """Settings from the flags that were given, the environment, the file and defaults. Raises InvalidConfiguration.

    Without `config_file` the file is $CITADEL_CONFIG, ./citadel.toml or /etc/citadel-py/citadel.toml.
    """
    return _load(ServeSettings, flags, config_file)


def load_agent(flags: Mapping[str, object], config_file: Path | None = None) -> AgentSettings:
    """As load_serve."""
    return _load(AgentSettings, flags, config_file)


@dataclass(frozen=True, slots=True)
class _Found:
    value: object
    origin: str  # "flag --listen", "variable CITADEL_SERVE__LISTEN", "[serve] in /etc/citadel-py/citadel.toml"


Model = TypeVar("Model", bound=Settings)


def _load(model: type[Model], flags: Mapping[str, object], config_file: Path | None) -> Model:
    found = _from_file(model, config_file) | _from_environment(model) | _from_flags(flags)
    for name, each in found.items():
        _check_name(name, model.model_fields, each.origin)
    try:
        return model.model_validate({name: each.value for name, each in found.items()})
    except ValidationError as error:
        raise _explained(error.errors(), found, model) from error


def _from_flags(flags: Mapping[str, object]) -> dict[str, _Found]:
    return {name: _Found(value, f"flag {_flag(name)}") for name, value in flags.items() if value is not None}


def _from_environment(model: type[Settings]) -> dict[str, _Found]:
    """Our variables. One that differs from ours in underscores alone is a slip, and told."""
    names = {_variable(model, name): name for name in model.model_fields}
    letters = {variable.replace("_", "") for variable in names}
    found = {}
    for variable, text in os.environ.items():
        if variable.startswith(_variable(model, "")) or variable.replace("_", "") in letters:
            _check_name(variable, names, "in the environment")
            found[names[variable]] = _Found(text, f"variable {variable}")
    return found


def _from_file(model: type[Settings], config_file: Path | None) -> dict[str, _Found]:
    path = config_file or _file_of_environment() or next((each for each in SEARCHED_FILES if each.exists()), None)
    if path is None:
        return {}
    document = _read_toml(path)
    for name in document:
        _check_name(name, ("serve", "agent"), f"{path}")
    table = document.get(model.section, {})
    if not isinstance(table, dict):
        raise InvalidConfiguration(f"{model.section} in {path} is not a table", rule="invalid_setting")
    return {name: _Found(value, f"[{model.section}] in {path}") for name, value in table.items()}


def _file_of_environment() -> Path | None:
    name = os.environ.get(FILE_VARIABLE)
    return Path(name) if name else None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise InvalidConfiguration(f"{path} has more than {MAX_FILE_BYTES} bytes", rule="config_file_too_large")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise InvalidConfiguration(f"cannot read {path}: {error.strerror}", rule="config_file_unreadable") from error
    except ValueError as error:  # of TOML and of UTF-8
        raise InvalidConfiguration(f"{path} is not TOML: {error}", rule="config_file_syntax") from error


def _check_name(name: str, known: Iterable[str], origin: str) -> None:
    names = sorted(known)
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(names)}"
    raise InvalidConfiguration(f"unknown setting {name[:60]!a} ({origin})", rule="unknown_setting", hint=hint)


def _explained(
    problems: Iterable[ErrorDetails], found: Mapping[str, _Found], model: type[Settings]
) -> InvalidConfiguration:
    told = [_told(problem, found) for problem in problems]
    missing = [str(problem["loc"][0]) for problem in problems if len(problem["loc"]) == 1 and is_missing(problem)]
    hint = [
        f"give {_flag(name)}, {_variable(model, name)}, or {name} under [{model.section}] of a file" for name in missing
    ]
    rule = "missing_setting" if len(missing) == len(told) else "invalid_setting"
    return InvalidConfiguration("; ".join(told), rule=rule, hint=hint)


def _told(problem: ErrorDetails, found: Mapping[str, _Found]) -> str:
    name, *inner = problem["loc"]
    each = found.get(str(name))
    if each is None:
        return f"{name} is not set"
    return f"{told_within(str(name), inner, each.value, problem)} ({each.origin})"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(model: type[Settings], name: str) -> str:
    return f"CITADEL_{model.section.upper()}__{name.upper()}"
