"""`bundle`: the roots by which others verify what this authority issues."""

from __future__ import annotations

from pathlib import Path

import click

from citadel_py.cli import frame, options
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session


@frame.family(
    "bundle", examples=["citadel-py bundle show --dir /srv/ca", "citadel-py bundle export --dir /srv/ca > ca.crt"]
)
def command() -> None:
    """Show or export the trust bundle of an authority."""


@frame.command(
    "show",
    examples=["citadel-py bundle show --dir /srv/ca", "citadel-py bundle show --dir /srv/ca --json"],
    codes=[Exit.UNAVAILABLE],
)
@options.directory
@options.as_json
@click.pass_obj
def show(session: Session, directory: Path, *, as_json: bool) -> None:
    """Show the authorities in the bundle."""
    from citadel_py.cli.authority import read_bundle
    from citadel_py.cli.blocks import certificate_block
    from citadel_py.cli.describe import certificate_facts
    from citadel_py.cli.render import fields, heading

    now = session.now()
    bundle = read_bundle(directory)
    certificates = [certificate_facts(each, now=now) for each in bundle.authorities]
    if as_json:
        document = {"trust_domain": str(bundle.trust_domain), "sequence": bundle.sequence}
        session.answer_json({**document, "content_sha256": bundle.content_hash, "certificates": certificates})
        return
    rows = [("sequence", str(bundle.sequence)), ("content sha256", bundle.content_hash)]
    blocks = [certificate_block(facts, now=now) for facts in certificates]
    session.answer("\n".join([heading("bundle", f"of {bundle.trust_domain}") + fields(rows), *blocks]))


@frame.command(
    "export",
    examples=[
        "citadel-py bundle export --dir /srv/ca > ca.crt",
        "citadel-py bundle export --dir /srv/ca --format jwks > bundle.json",
    ],
    codes=[Exit.UNAVAILABLE],
)
@options.directory
@click.option(
    "--format", "file_format", type=click.Choice(["pem", "jwks"]), default="pem", show_default=True,
    help="jwks is the SPIFFE bundle format.",
)  # fmt: skip
@click.pass_obj
def export(session: Session, directory: Path, file_format: str) -> None:
    """Print the bundle on stdout, for those who verify."""
    from citadel_py.cli.authority import read_bundle

    bundle = read_bundle(directory)
    session.answer(bundle.to_pem() if file_format == "pem" else bundle.to_jwks())


command.add_command(show)
command.add_command(export)
