"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from citadel_py.cli import params
from citadel_py.cli.session import Session

Function = TypeVar("Function", bound=Callable[..., Any])

DIRECTORY_VARIABLE = "CITADEL_DIR"
LEDGER_VARIABLE = "CITADEL_LEDGER"
STDIN = "-"
PASSPHRASE_VARIABLE = "CITADEL_PASSPHRASE_FILE"  # noqa: S105 - the name of a variable

# Only for completion in a shell: whether a file can be read is told by whoever reads it.
FILE = click.Path(allow_dash=True)

directory = click.option(
    "--dir", "directory", metavar="D", required=True, envvar=DIRECTORY_VARIABLE, show_envvar=True,
    type=click.Path(path_type=Path), help="Directory of the authority.",
)  # fmt: skip

ledger = click.option(
    "--ledger", metavar="URL", envvar=LEDGER_VARIABLE, show_envvar=True,
    help="The ledger, when it is not D/ledger.db: a path, or postgresql://HOST/DATABASE.",
)  # fmt: skip

yes = click.option("--yes", is_flag=True, help="Do not ask.")

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def confirm(session: Session, question: str, *, yes: bool) -> None:
    """Go on only where a person says so, or said so before. Raises UsageError, Abort."""
    if yes:
        return
    if not session.may_prompt:
        raise click.UsageError("there is nobody to ask: say --yes")
    click.confirm(question, abort=True, err=True)


def passphrase_file(help_text: str) -> Callable[[Function], Function]:
    """`--passphrase-file`: the value is the name of a file, never the passphrase."""
    return click.option(
        "--passphrase-file", metavar="F", type=FILE, envvar=PASSPHRASE_VARIABLE, show_envvar=True,
        help=f"{help_text} - is stdin.",
    )  # fmt: skip


ttl = click.option("--ttl", type=params.DURATION, help="Lifetime, such as 1h or 30d (at most 90d).  [default: 24h]")

dns = click.option("--dns", metavar="NAME", multiple=True, help="A DNS name in the certificate; may be repeated.")
