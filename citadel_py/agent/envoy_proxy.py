"""What a proxy beside an agent is to be, as values; envoy_bootstrap.py makes a configuration of it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Final

from citadel_py.config import Address
from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.spiffe import SpiffeID, TrustDomain

# A guard that lets nobody in by itself. Its list and that of SDS add up, so that any other would widen what SDS says.
NOBODY: Final = "spiffe://nobody.invalid/peers-are-named-by-sds"
MAX_SOCKET_PATH_BYTES: Final = 107  # sockaddr_un: 108 with the final NUL; Envoy's core.v3.Pipe


class Peers(Enum):
    """Who names the peers, where the proxy's own configuration does not."""

    BY_AGENT = "by agent"


@dataclass(frozen=True, slots=True)
class RemoteAgent:
    """An agent that is asked over TCP by mTLS, and whose certificate has `id`. Raises InvalidConfiguration.

    The proxy's own certificate for that, and what it verifies the agent with, are told by two files in the
    directory `credentials`: secrets that come from the agent cannot open the way to it.
    """

    address: Address
    id: SpiffeID
    credentials: Path

    def __post_init__(self) -> None:
        if not self.address.host or not self.address.port:
            raise InvalidConfiguration(
                f"{self.address} is nowhere to call an agent",
                rule="invalid_address",
                hint="write agent.example.org:15020",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """What both sides have.

    `node` names the proxy in logs and grants nothing. `sds` is the agent's socket, absolute or relative
    to where Envoy starts, or an agent on another machine. A port of 0 means a free one.
    `response_headers` are added to every response; their values may hold Envoy's `%COMMANDS%`.
    `certificate` and `bundle` are resource names. `is_delta` takes them by the incremental protocol.

    Raises InvalidConfiguration for a socket path or an address that Envoy cannot use.
    """

    node: str
    sds: Path | RemoteAgent
    listen: Address
    admin_port: int = 9901
    cluster: str = "citadel-py"
    certificate: str = "default"
    bundle: str = "ROOTCA"
    is_delta: bool = False
    max_connection_duration: timedelta = timedelta(minutes=10)
    response_headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.sds, RemoteAgent):
            _check_socket_path(self.sds)
        _ip_address(self.listen)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProxy(Proxy):
    """Takes mTLS from peers and hands their requests to the application.

    `admitted` is who may connect: everybody in a trust domain, only these IDs, or whom the agent names in
    its validation context. Without an `application` it answers 200 by itself.
    """

    admitted: TrustDomain | tuple[SpiffeID, ...] | Peers
    application: Address | None = None

    def __post_init__(self) -> None:
        Proxy.__post_init__(self)
        if not self.admitted:
            # An empty list of matchers is no guard at all.
            raise InvalidConfiguration("a server proxy that admits nobody", rule="nobody_admitted")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProxy(Proxy):
    """Takes plain requests on loopback and sends them to `upstream` by mTLS, if that is `peer`.

    The peer is one ID, or whom the agent names in its validation context. Whoever reaches its listener
    speaks with its identity. `max_requests_per_connection` of 1 makes a handshake for each request.
    """

    upstream: Address
    peer: SpiffeID | Peers
    max_requests_per_connection: int | None = None

    def __post_init__(self) -> None:
        Proxy.__post_init__(self)
        if not _ip_address(self.listen).is_loopback:
            raise InvalidConfiguration(
                f"{self.listen} takes plain requests and is not on loopback: anybody who reaches it has the identity",
                rule="plain_listener_exposed",
                hint=f"write 127.0.0.1:{self.listen.port}",
            )


def _ip_address(listen: Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Where to listen, `::` for every address. Raises InvalidConfiguration: Envoy listens on no host name."""
    try:
        return ipaddress.ip_address(listen.host or "::")
    except ValueError as error:
        raise InvalidConfiguration(
            f"{listen} is no address to listen on: Envoy wants an IP address, not a name",
            rule="listen_address",
            hint=f"write 127.0.0.1:{listen.port}",
        ) from error


def _check_socket_path(path: Path) -> None:
    """Raises InvalidConfiguration: `socket_path_too_long`, `abstract_socket`."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise InvalidConfiguration(
            f"the socket path {path} has {length} bytes, a Unix socket's may have {MAX_SOCKET_PATH_BYTES}",
            rule="socket_path_too_long",
            hint="choose a directory with a shorter name, or a path relative to where Envoy starts",
        )
    if str(path).startswith("@"):
        raise InvalidConfiguration(
            f"{path} is an abstract socket: it has no permissions, so everybody on the machine could serve on it",
            rule="abstract_socket",
            hint="choose a path in a directory that only the agent writes to",
        )
