"""What the settings of both services have in common."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from citadel_py.config.values import DurationSetting
from citadel_py.core.errors import InvalidConfiguration


class Settings(BaseModel):
    """What both services have. `section` is the table of the TOML file and a part of each variable's name."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    section: ClassVar[str]

    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    shutdown_grace: DurationSetting = timedelta(seconds=20)


def conflict(message: str) -> InvalidConfiguration:
    """Settings that are good by themselves and not together."""
    return InvalidConfiguration(message, rule="settings_conflict")
