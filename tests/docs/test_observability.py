"""Metrics, events and settings are documented, each of them, and nothing that does not exist."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from citadel_py.config import Address, AgentSettings, ServeSettings, Settings
from citadel_py.core.duration import format_duration
from citadel_py.obs import events
from citadel_py.obs.metrics import AgentMetrics, CAMetrics, Metrics, WorkersMetrics

ROOT = Path(__file__).parents[2]
EVENTS = {value: name for name, value in vars(events).items() if name.isupper()}


def samples(metrics: Metrics) -> set[str]:
    """Names as a scraper sees them."""
    suffix = {"counter": "_total"}
    return {family.name + suffix.get(family.type, "") for family in metrics.registry.collect()}


def declared() -> set[str]:
    names = samples(CAMetrics()) | samples(WorkersMetrics()) | samples(AgentMetrics())
    return {name for name in names if name.startswith("citadel_")}


def test_every_metric_is_documented_and_every_documented_one_exists(documented: Callable[[str], list[str]]) -> None:
    assert sorted(documented("reference/metrics.md")) == sorted(declared())


def test_every_event_is_documented_and_every_documented_one_exists(documented: Callable[[str], list[str]]) -> None:
    assert sorted(documented("reference/logs.md")) == sorted(EVENTS)


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_is_logged_somewhere(event: str) -> None:
    used = f"events.{EVENTS[event]}"

    assert any(used in path.read_text() for path in (ROOT / "citadel_py").rglob("*.py"))


@pytest.mark.parametrize("model", [ServeSettings, AgentSettings])
def test_every_setting_is_documented_with_its_default(model: type[Settings]) -> None:
    section = (ROOT / "docs/reference/configuration.md").read_text().split(f"## `[{model.section}]`")[1]
    rows = [line.split(" | ") for line in section.split("\n## ")[0].splitlines() if line.startswith("| `")]

    assert {row[0].removeprefix("| "): row[1] for row in rows} == {
        f"`{name}`": "needed" if field.is_required() else shown(name, field.default)
        for name, field in model.model_fields.items()
    }


def shown(name: str, default: object) -> str:
    match default:
        case None | ():
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case timedelta():
            return f"`{format_duration(default)}`"
        case int() if name == "sds_mode":
            return f"`{default:04o}`"
        case _:
            return f"`{default}`"


def test_addresses_are_documented_as_they_are_written() -> None:
    text = (ROOT / "docs/reference/configuration.md").read_text()

    assert f"`{Address('127.0.0.1', 15012)}`" in text
