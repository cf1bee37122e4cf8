"""`token`: one-time join tokens, by which an agent gets its first certificate from a CA service."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session
from citadel_py.core.duration import format_duration
from citadel_py.core.errors import LifetimeRefused, PermissionDenied
from citadel_py.core.spiffe import SpiffeID, TrustDomain

_SHORTEST, _LONGEST = timedelta(seconds=1), timedelta(days=7)  # a token is a bearer secret: it should not lie around


@frame.family("token", examples=["citadel-py token create spiffe://example.org/web --dir /srv/ca > web.token"])
def command() -> None:
    """One-time join tokens for agents."""


@frame.command(
    "create",
    examples=[
        "citadel-py token create spiffe://example.org/web --dir /srv/ca > web.token",
        "citadel-py token create spiffe://example.org/web --dir /srv/ca --ttl 1h --json",
    ],
    codes=[Exit.UNAVAILABLE, Exit.DENIED],
    meanings={Exit.DONE: "made: the token is on stdout"},
)
@click.argument("id", type=params.SPIFFE_ID)
@options.directory
@options.ledger
@click.option(
    "--ttl", type=params.DURATION, default="10m", show_default=True, help="How long it can be used (at most 7d)."
)
@options.as_json
@click.pass_obj
def create(
    session: Session, /, *, id: SpiffeID, directory: Path, ledger: str | None, ttl: timedelta, as_json: bool
) -> None:
    """Make a token that gets the certificate of ID from the CA service on D, once.

    Only its hash is kept: what is printed cannot be shown again.
    """
    from citadel_py.cli.authority import read_bundle
    from citadel_py.cli.render import moment_with_words, rfc3339
    from citadel_py.store import authority_dir

    now = session.now()
    _check_ttl(ttl)
    _check_workload(id, read_bundle(directory).trust_domain)
    token, expires_at = _make_token(ledger or directory / authority_dir.LEDGER, id, now=now, ttl=ttl)
    if as_json:
        session.answer_json({"token": token, "id": str(id), "expires_at": rfc3339(expires_at)})
    else:
        session.answer(token + "\n")
        session.note(f"for {id}, once, until {moment_with_words(expires_at, now)}")


def _check_ttl(ttl: timedelta) -> None:
    if not _SHORTEST <= ttl <= _LONGEST:
        raise LifetimeRefused(
            f"--ttl: {format_duration(ttl)} is not within {format_duration(_SHORTEST)} and {format_duration(_LONGEST)}",
            rule="token_lifetime",
        )


def _check_workload(id: SpiffeID, trust_domain: TrustDomain) -> None:
    """Raise PermissionDenied for an ID that the service would never issue."""
    if id.trust_domain != trust_domain:
        raise PermissionDenied(
            f"{id} is not in the trust domain {trust_domain} of this authority", rule="foreign_trust_domain"
        )
    if not id.path:
        raise PermissionDenied(f"{id} has no path: it is an authority, no workload", rule="leaf_id_without_path")


def _make_token(place: Path | str, id: SpiffeID, *, now: datetime, ttl: timedelta) -> tuple[str, datetime]:
    """A token that is kept, and when it expires. Raises LedgerUnavailable."""
    import os

    from citadel_py.cli.authority import WRITER
    from citadel_py.core.join_token import ENTROPY_BYTES, new_token
    from citadel_py.core.ports import JoinToken
    from citadel_py.store.ledger import SQLLedger

    token, digest = new_token(os.urandom(ENTROPY_BYTES))
    expires_at = now + ttl
    with SQLLedger.open(place, writer=WRITER) as ledger:
        ledger.add(JoinToken(digest, id, expires_at))
    return token, expires_at


command.add_command(create)
