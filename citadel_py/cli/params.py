"""Types of arguments and options: text becomes a domain value once, here, and errors name their source."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Generic, NoReturn, TypeVar

import click
from click.core import ParameterSource

from citadel_py.core.duration import parse_duration
from citadel_py.core.errors import BadInput, InvalidSpiffeID
from citadel_py.core.spiffe import SCHEME, SpiffeID, TrustDomain

Value = TypeVar("Value")


class InvalidTime(BadInput):
    """Not a moment as RFC 3339 writes it."""

    code = "invalid_time"


class Parsed(click.ParamType, Generic[Value]):  # type: ignore[type-arg]  # generic only in newer releases
    """An argument or option that `parse` reads; what it raises (BadInput) is told with its source."""

    def __init__(self, name: str, parse: Callable[[str], Value]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        """The value. Raises BadInput, with the flag, argument or variable in its message."""
        try:
            return self._parse(str(value))
        except BadInput as error:
            _raise_with_source(error, param, ctx)


def source_of(param: click.Parameter, ctx: click.Context | None) -> str:
    """Where a value came from: `--ttl`, `ID`, or `CITADEL_DIR`."""
    if ctx and param.name and ctx.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name


def parse_moment(text: str) -> datetime:
    """A moment such as `2030-01-31T12:00:00Z` (RFC 3339 5.6), aware UTC. Raises InvalidTime."""
    try:
        moment = datetime.fromisoformat(text)
        if "T" in text.upper() and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise InvalidTime(f"{text[:40]!a} is not a moment with a time zone", hint="write it as 2030-01-31T12:00:00Z")


def parse_id(text: str) -> SpiffeID:
    """A SPIFFE ID; one that lacks its beginning gets a hint. Raises InvalidSpiffeID."""
    try:
        return SpiffeID.parse(text)
    except InvalidSpiffeID as error:
        if error.rule != "spiffe_id_scheme":
            raise
        hint = (
            f"write the whole ID: {SCHEME}TRUST_DOMAIN/{text.lstrip('/')}"
            if text
            else "write spiffe://TRUST_DOMAIN/PATH"
        )
        raise InvalidSpiffeID(error.message, rule=error.rule, hint=hint) from error


def parse_serial(text: str) -> str:
    """A serial number as the ledger writes it, also from `AB:CD:..`. Raises BadInput (`invalid_serial`)."""
    serial = text.replace(":", "").lower()
    if not serial or set(serial) - set("0123456789abcdef"):
        raise BadInput(f"{text[:60]!a} is no serial number: it is written in hex", rule="invalid_serial")
    return serial


def _raise_with_source(error: BadInput, param: click.Parameter | None, ctx: click.Context | None) -> NoReturn:
    if param is None:
        raise error
    raise type(error)(f"{source_of(param, ctx)}: {error.message}", rule=error.rule, hint=error.hints) from error


SPIFFE_ID = Parsed("ID", parse_id)
SERIAL = Parsed("HEX", parse_serial)
TRUST_DOMAIN = Parsed("NAME", TrustDomain.parse)
DURATION = Parsed("DURATION", parse_duration)
MOMENT = Parsed("TIME", parse_moment)
