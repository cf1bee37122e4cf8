"""Settings of one socket of an agent: who is served there, to whom, and what is written beside it.

Nothing here looks a user up or opens a path.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from citadel_py.config.base import conflict
from citadel_py.config.values import (
    AccountSetting,
    AddressSetting,
    CommandSetting,
    IdSetting,
    ModeSetting,
    PeersSetting,
)
from citadel_py.core.context_options import ContextOptions, CrlCheck


class SocketOptions(BaseModel):
    """What an agent with one socket says at the top of its section, and one with several for each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    root_validator: Literal["plain", "spiffe"] = "plain"
    out: Path | None = None
    exec: CommandSetting | None = None
    signal_pid_file: Path | None = None
    signal: Literal["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH"] = "HUP"

    def check(self) -> None:
        """Raise InvalidConfiguration (`settings_conflict`) for what does not fit together."""
        for name in ("exec", "signal_pid_file"):
            if getattr(self, name) is not None and self.out is None:
                raise conflict(f"{name} has no meaning without out")


class SocketSettings(SocketOptions):
    """One `[[agent.sockets]]`. The first identity is `default`; each has its own name, too."""

    path: str
    identities: tuple[IdSetting, ...]
    mode: ModeSetting = 0o660
    owner: AccountSetting | None = None
    group: AccountSetting | None = None
    peers: PeersSetting = ()
    crl: Literal["off", "leaf", "path"] = "off"
    listen: AddressSetting | None = None
    keys_to: tuple[IdSetting, ...] = ()

    @property
    def context(self) -> ContextOptions:
        """What its validation contexts ask of peers."""
        return ContextOptions(self.root_validator == "spiffe", self.peers, CrlCheck(self.crl))

    @property
    def place(self) -> str:
        """The file system's name of the socket: equal for two ways to write one path."""
        path = self.path.removeprefix("unix:")
        return os.path.abspath(path[2:] if path.startswith("///") else path)  # noqa: PTH100 - Path keeps `..`

    def check(self) -> None:
        super().check()
        _ = self.context
        if self.keys_to and self.listen is None:
            raise conflict("keys_to has no meaning without listen")
        if not self.identities:
            raise conflict("identities has none")
        (most, times), *_ = Counter(self.identities).most_common(1)
        if times > 1:
            raise conflict(f"identities has {most} twice")
