"""Settings of the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from citadel_py.config.base import Settings, conflict
from citadel_py.config.values import (
    AddressSetting,
    CommandSetting,
    DurationSetting,
    FederatedSetting,
    IdSetting,
    ModeSetting,
)
from citadel_py.core.renewal import RenewalPolicy


class AgentSettings(Settings):
    """Settings of `citadel-py agent`."""

    section = "agent"

    ca: AddressSetting | None = None
    ca_mtls: AddressSetting | None = None
    ca_bundle: Path | None = None
    token_file: Path | None = None
    ca_dir: Path | None = None
    passphrase_file: Path | None = None
    id: IdSetting
    state: Path
    sds: str
    sds_mode: ModeSetting = 0o660
    federated: FederatedSetting = ()
    root_validator: Literal["plain", "spiffe"] = "plain"
    out: Path | None = None
    exec: CommandSetting | None = None
    signal_pid_file: Path | None = None
    signal: Literal["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH"] = "HUP"
    ttl: DurationSetting | None = None
    renew_earliest: float = 0.5
    renew_latest: float = 0.66
    admin: AddressSetting | None = None

    @property
    def renewal(self) -> RenewalPolicy:
        return RenewalPolicy(self.renew_earliest, self.renew_latest)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        _ = self.renewal
        if (self.ca is None) == (self.ca_dir is None):
            raise conflict("exactly one of ca (a service) and ca_dir (an authority on this machine) is needed")
        if self.ca is not None and self.ca_bundle is None:
            raise conflict("ca needs ca_bundle: the roots that verify the service")
        if self.ca is not None and not (self.ca.host and self.ca.port):
            raise conflict(f"ca needs a host and a port to call, not {str(self.ca)!r}")
        if self.out is not None and self.out.absolute() == self.state.absolute():
            raise conflict("out and state are one directory: what is in state belongs to the agent alone")
        self._check_federated()
        for name, other in _EXCLUSIVE.items():
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise conflict(f"{name} has no meaning without {other}")
        return self

    def _check_federated(self) -> None:
        names = [each.trust_domain for each in self.federated]
        if self.id.trust_domain in names:
            raise conflict(f"federated names {self.id.trust_domain}, whose bundle comes from the authority itself")
        if len(set(names)) < len(names):
            raise conflict("federated names a trust domain twice")


# The first means something only beside the second.
_EXCLUSIVE = {
    "ca_mtls": "ca",
    "ca_bundle": "ca",
    "token_file": "ca",
    "passphrase_file": "ca_dir",
    "exec": "out",
    "signal_pid_file": "out",
}
