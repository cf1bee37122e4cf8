"""Values that settings are made of, and how each is written: addresses, durations, modes, names, commands."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, PlainSerializer

from citadel_py.core.context_options import PeerMatcher
from citadel_py.core.duration import format_duration, parse_duration
from citadel_py.core.errors import BadInput, InvalidConfiguration
from citadel_py.core.spiffe import SpiffeID, TrustDomain

_NO_ACCOUNT = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Address:
    """`HOST:PORT`. An empty host means every address of the machine; port 0 means a free one."""

    host: str
    port: int

    @property
    def bind_host(self) -> str | None:
        """The host as asyncio wants it: None for every address."""
        return self.host or None

    def __str__(self) -> str:
        host = self.host or "::"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read `HOST:PORT`, `[::1]:443` or `:443`. Raises InvalidConfiguration."""
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    if not colon or (":" in host) != is_bracketed or set(host) & set("[]/ \t"):
        raise _invalid_address(text, "it is not HOST:PORT")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise _invalid_address(text, "its port is not a number from 0 to 65535")
    return Address(host, int(port))


def _invalid_address(text: str, why: str) -> InvalidConfiguration:
    return InvalidConfiguration(
        f"{text[:100]!a} is no address: {why}",
        rule="invalid_address",
        hint="write 127.0.0.1:8443, [::1]:8443, or :8443 for every address of this machine",
    )


def _write_address(address: Address) -> str:
    """What parse_address reads as the same."""
    return str(address) if address.host else f":{address.port}"


def _parse_mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise InvalidConfiguration(f"{text[:20]!a} is no file mode: write it as 0660", rule="invalid_mode")
    return mode


def _split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _split_command(text: str) -> tuple[str, ...]:
    """Words as a shell would split them; nothing else of a shell is understood."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidConfiguration(f"{text[:100]!a} is no command: {error}", rule="command_quoting") from error
    if not words:
        raise InvalidConfiguration("an empty command", rule="command_quoting")
    return words


def _text_read_by(parse: Callable[[str], object]) -> BeforeValidator:
    """Text goes through our own parser; what else the type accepts, pydantic decides."""
    return _read_by(lambda value: parse(value) if isinstance(value, str) else value)


def _read_by(parse: Callable[[object], object]) -> BeforeValidator:
    def validate(value: object) -> object:
        try:
            return parse(value)
        except BadInput as error:
            raise ValueError(error.message) from error

    return BeforeValidator(validate)


@dataclass(frozen=True, slots=True)
class FederatedFile:
    """A file with the bundle of another trust domain: PEM, or the SPIFFE format."""

    trust_domain: TrustDomain
    path: Path

    @classmethod
    def parse(cls, text: str) -> Self:
        """`other.test=FILE`."""
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise InvalidConfiguration(
                f"{text[:100]!a} is not TRUST_DOMAIN=FILE",
                rule="federated_file",
                hint="--federated other.example=/etc/citadel-py/other.example.pem",
            )
        return cls(TrustDomain.parse(name), Path(path))


def _parse_federated(value: object) -> object:
    texts = _split_names(value) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return value
    return tuple(FederatedFile.parse(each) if isinstance(each, str) else each for each in texts)


def _parse_peers(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    return tuple(PeerMatcher.parse(each) if isinstance(each, str) else each for each in value)


def _parse_account(value: object) -> object:
    """A name, or a number but the last one, which means 'leave it' to the system (chown(2))."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if (is_number and 0 <= value < _NO_ACCOUNT) or (isinstance(value, str) and value):  # type: ignore[operator]
        return value
    raise ValueError("it is neither the name nor the number of an account")


def _only_text(value: object) -> object:
    if isinstance(value, int | float):
        raise ValueError("write it in quotes")  # noqa: TRY004 - the kind of error that pydantic collects
    return value


def _parse_workers(text: str) -> int | str:
    """`auto` is as many as there are CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if text == "auto" else text


MAX_WORKERS = 128

# Of several validators the last one runs first.
_ONLY_TEXT = BeforeValidator(_only_text)
AccountSetting = Annotated[int | str, BeforeValidator(_parse_account)]
AddressSetting = Annotated[Address, _text_read_by(parse_address), PlainSerializer(_write_address)]
DurationSetting = Annotated[timedelta, _text_read_by(parse_duration), _ONLY_TEXT, PlainSerializer(format_duration)]
IdSetting = Annotated[SpiffeID, _text_read_by(SpiffeID.parse)]
CommandSetting = Annotated[tuple[str, ...], _text_read_by(_split_command)]
WorkersSetting = Annotated[int, Field(ge=1, le=MAX_WORKERS), _text_read_by(_parse_workers)]
ModeSetting = Annotated[int, _text_read_by(_parse_mode), _ONLY_TEXT]
FederatedSetting = Annotated[tuple[FederatedFile, ...], _read_by(_parse_federated)]
PeersSetting = Annotated[tuple[PeerMatcher, ...], _read_by(_parse_peers)]
NamesSetting = Annotated[tuple[str, ...], _text_read_by(_split_names)]
