"""The systemd units: they name settings that exist, and leave the services the time that they need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from citadel_py.config import AgentSettings, ServeSettings, Settings

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"


def service_of(model: type[Settings]) -> list[tuple[str, str]]:
    """The assignments of the [Service] section, repeated ones too."""
    text = (UNITS / f"citadel-py-{model.section}.service").read_text()
    section = text.split("\n[Service]\n")[1].split("\n[")[0]
    return [(name, value) for name, _, value in (line.partition("=") for line in section.splitlines()) if value]


@pytest.fixture(params=[ServeSettings, AgentSettings], ids=lambda model: str(model.section))
def model(request: pytest.FixtureRequest) -> type[Settings]:
    return request.param  # type: ignore[no-any-return]  # pytest's own


def test_variables_are_settings(model: type[Settings]) -> None:
    variables = [value.partition("=")[0] for name, value in service_of(model) if name == "Environment"]

    assert variables
    prefix = f"CITADEL_{model.section.upper()}__"
    assert {variable.removeprefix(prefix).lower() for variable in variables} <= set(model.model_fields)


def test_the_command_is_ours(model: type[Settings]) -> None:
    (command,) = [value for name, value in service_of(model) if name == "ExecStart"]

    assert re.fullmatch(rf"\S+/citadel-py {model.section} --config \S+\.toml", command)


def test_a_stop_is_given_more_time_than_it_takes(model: type[Settings]) -> None:
    (timeout_s,) = [int(value) for name, value in service_of(model) if name == "TimeoutStopSec"]

    assert timeout_s > model.model_fields["shutdown_grace"].default.total_seconds()


def test_what_cannot_heal_is_not_started_again(model: type[Settings]) -> None:
    assert ("RestartPreventExitStatus", "2 3") in service_of(model)
    assert ("Restart", "always") in service_of(model)


def test_the_manager_is_told_of_readiness_and_life(model: type[Settings]) -> None:
    assert ("Type", "notify") in service_of(model)
    assert any(name == "WatchdogSec" for name, _ in service_of(model))
