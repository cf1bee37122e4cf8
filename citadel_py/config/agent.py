"""Settings of the agent: for one identity on one socket, or for many sockets with many identities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from citadel_py.config.base import Settings, conflict
from citadel_py.config.sockets import SocketOptions, SocketSettings
from citadel_py.config.values import AddressSetting, DurationSetting, FederatedSetting, IdSetting, ModeSetting
from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.renewal import RenewalPolicy
from citadel_py.core.spiffe import SpiffeID, TrustDomain


class AgentSettings(Settings, SocketOptions):
    """Settings of `citadel-py agent`. `id` and `sds` are one socket; `sockets` are several in their place."""

    section = "agent"

    ca: AddressSetting | None = None
    ca_mtls: AddressSetting | None = None
    ca_bundle: Path | None = None
    token_file: Path | None = None
    ca_dir: Path | None = None
    passphrase_file: Path | None = None
    node_id: IdSetting | None = None
    sockets: tuple[SocketSettings, ...] | None = None
    id: IdSetting | None = Field(default=None, validate_default=True)
    state: Path
    state_passphrase_file: Path | None = None
    sds: str | None = Field(default=None, validate_default=True)
    sds_mode: ModeSetting = 0o660
    federated: FederatedSetting = ()
    ttl: DurationSetting | None = None
    renew_earliest: float = 0.5
    renew_latest: float = 0.66
    admin: AddressSetting | None = None

    @property
    def renewal(self) -> RenewalPolicy:
        return RenewalPolicy(self.renew_earliest, self.renew_latest)

    @property
    def served(self) -> tuple[SocketSettings, ...]:
        """The sockets, however they were written."""
        if self.sockets is not None:
            return self.sockets
        options = {name: getattr(self, name) for name in SocketOptions.model_fields}
        id = (self.id,) if self.id else ()
        # Its parts are read already.
        return (SocketSettings.model_construct(path=self.sds or "", identities=id, mode=self.sds_mode, **options),)

    @property
    def identities(self) -> tuple[SpiffeID, ...]:
        """All that are to be kept fresh, each once; the node's own first, for it vouches for the others."""
        named = (id for socket in self.served for id in socket.identities)
        return tuple(dict.fromkeys((self.node_id, *named) if self.node_id else named))

    @property
    def trust_domain(self) -> TrustDomain:
        """The one of all identities."""
        return (self.node_id or self.served[0].identities[0]).trust_domain

    @field_validator("id", "sds")
    @classmethod
    def _is_needed(cls, value: object, info: ValidationInfo) -> object:
        """Without `sockets`, where these are readable at all."""
        if value is None and info.data.get("sockets", ()) is None:
            raise PydanticCustomError("missing", "Field required")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        _ = self.renewal
        self._check_source()
        self._check_form()
        self._check_sockets()
        self._check_federated()
        return self

    def _check_source(self) -> None:
        if (self.ca is None) == (self.ca_dir is None):
            raise conflict("exactly one of ca (a service) and ca_dir (an authority on this machine) is needed")
        if self.ca is not None and self.ca_bundle is None:
            raise conflict("ca needs ca_bundle: the roots that verify the service")
        if self.ca is not None and not (self.ca.host and self.ca.port):
            raise conflict(f"ca needs a host and a port to call, not {str(self.ca)!r}")
        if self.node_id is not None and self.ca_dir is not None:
            raise conflict("node_id has no meaning with ca_dir: whoever has the authority needs nobody to vouch")
        for name, other in _MEANINGLESS_WITHOUT.items():
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise conflict(f"{name} has no meaning without {other}")

    def _check_form(self) -> None:
        self.check()
        if self.sockets is None:
            return
        if not self.sockets:
            raise conflict("sockets has none: leave it out, or write [[agent.sockets]]")
        for name in ("id", "sds", "sds_mode", *SocketOptions.model_fields):
            if name in self.model_fields_set:
                raise conflict(f"{name} and sockets cannot be both: say it for each of [[agent.sockets]]")

    def _check_sockets(self) -> None:
        places: dict[str, str] = {}
        for where, socket in self._places():
            try:
                socket.check()
                self._check_socket(socket)
                listen = str(socket.listen) if socket.listen and socket.listen.port else None
                out = str(socket.out.absolute()) if socket.out else None
                for what, place in (("the path", socket.place), ("out", out), ("listen", listen)):
                    if place and (other := places.setdefault(place, where)) is not where:
                        raise conflict(f"{what} is that of {other}, too")
            except InvalidConfiguration as error:
                prefix = f"{where}: " if self.sockets else ""
                raise InvalidConfiguration(prefix + error.message, rule=error.rule, hint=error.hints) from error

    def _check_socket(self, socket: SocketSettings) -> None:
        if socket.out is not None and socket.out.absolute() == self.state.absolute():
            raise conflict("out and state are one directory: what is in state belongs to the agent alone")
        trust_domain = self.trust_domain
        for id in (*socket.identities, *socket.keys_to):
            if id.trust_domain != trust_domain:
                raise conflict(f"{id} is not of the trust domain {trust_domain}, whose CA is asked")

    def _places(self) -> Iterator[tuple[str, SocketSettings]]:
        """Each socket with its name in errors, counted from 1."""
        for number, socket in enumerate(self.served, 1):
            yield f"socket {number} ({socket.path[:120]})", socket

    def _check_federated(self) -> None:
        names = [each.trust_domain for each in self.federated]
        if self.trust_domain in names:
            raise conflict(f"federated names {self.trust_domain}, whose bundle comes from the authority itself")
        if len(set(names)) < len(names):
            raise conflict("federated names a trust domain twice")


# The first means something only beside the second.
_MEANINGLESS_WITHOUT = {
    "ca_mtls": "ca",
    "ca_bundle": "ca",
    "token_file": "ca",
    "passphrase_file": "ca_dir",
    "node_id": "sockets",
}
