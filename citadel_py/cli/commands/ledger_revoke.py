"""`ledger revoke`: certificates that shall be refused, in the ledger and in the lists that peers are given."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session
from citadel_py.core.spiffe import SCHEME, SpiffeID


def parse_target(text: str) -> SpiffeID | str:
    """A SPIFFE ID, or a serial number. Raises BadInput."""
    return params.parse_id(text) if text.startswith(SCHEME) else params.parse_serial(text)


@frame.command(
    "revoke",
    examples=[
        "citadel-py ledger revoke 7d3fb4a4b0d7e3a9c8b1 --dir /srv/ca --yes",
        "citadel-py ledger revoke spiffe://example.org/web --dir /srv/ca --root-dir /media/usb --yes",
        "citadel-py ledger revoke --dir /srv/ca --next-update 7d",
    ],
    codes=[Exit.UNAVAILABLE],
    meanings={Exit.DONE: "revoked, and the lists are written"},
)
@click.argument("targets", metavar="[SERIAL|ID]...", nargs=-1, type=params.Parsed("SERIAL|ID", parse_target))
@options.directory
@options.ledger
@click.option(
    "--root-dir", metavar="DIR", type=click.Path(path_type=Path), help="Where the root's key is, if not in D."
)
@click.option(
    "--next-update", "lasts", type=params.DURATION, default="7d", show_default=True,
    help="How long the lists are good; write them anew in time.",
)  # fmt: skip
@options.passphrase_file("Passphrase of the keys.")
@click.option("--dry-run", is_flag=True, help="Say what would be revoked, and change nothing.")
@options.yes
@options.as_json
@click.pass_obj
def revoke(
    session: Session, /, *, targets: tuple[SpiffeID | str, ...], directory: Path, ledger: str | None,
    root_dir: Path | None, lasts: timedelta, passphrase_file: str | None, dry_run: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Revoke certificates by serial number, or all that an identity has, and write D/crl.pem.

    Without any it writes the lists anew, as is needed before they end. Peers want a list of the root
    too: one that is there already is kept while it is good, a new one needs the root's key. `serve`
    takes the file over within a second and agents have it at once; what proxies do with it is for
    their `crl` option to say. A revocation cannot be taken back.
    """
    from citadel_py.cli.render import moment_with_words, rfc3339
    from citadel_py.cli.revocation import Revocation

    now = session.now()
    revocation = Revocation.open(session, directory, root_dir, passphrase_file, now=now, ledger=ledger)
    entries = revocation.find(targets)
    if entries and not dry_run:
        options.confirm(session, f"Revoke {len(entries)} certificates for good?", yes=yes)
    ends_at = now + lasts if dry_run else revocation.revoke(entries, lasts=lasts)
    if as_json:
        revoked = [{"serial": each.serial, "spiffe_id": each.spiffe_id} for each in entries]
        session.answer_json({"is_dry_run": dry_run, "revoked": revoked, "next_update": rfc3339(ends_at)})
        return
    done = "would be revoked" if dry_run else "revoked"
    for each in entries:
        session.answer(f"{each.serial} {each.spiffe_id} {done}\n")
    if not dry_run:
        session.note(f"{revocation.path.name} is good until {moment_with_words(ends_at, now)}")
