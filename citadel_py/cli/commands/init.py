"""`init`: an authority's directory, with a root (new, kept offline, or brought along) and an intermediate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session
from citadel_py.core.spiffe import TrustDomain

if TYPE_CHECKING:
    from citadel_py.cli.describe import Facts
    from citadel_py.core.profile import Authority

_KEY_TYPES = ("p256", "p384", "rsa3072", "rsa4096")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for."""

    directory: Path
    trust_domain: TrustDomain
    key_type: str
    root_lifetime: timedelta | None
    intermediate_lifetime: timedelta | None
    offline_root: Path | None
    import_root: str | None
    import_root_key: Path | None
    import_root_passphrase_file: str | None
    force: bool


@frame.command(
    "init",
    examples=[
        "citadel-py init --dir /srv/ca --trust-domain example.org",
        "citadel-py init --dir /srv/ca --trust-domain example.org --offline-root /media/usb --passphrase-file F",
        "citadel-py init --dir /srv/ca --trust-domain example.org --import-root root.crt --import-root-key root.key",
    ],
    codes=[Exit.UNAVAILABLE],
    meanings={Exit.DONE: "the authority is made", Exit.BAD_INPUT: "bad input, or an authority is there already"},
)
@options.directory
@click.option("--trust-domain", type=params.TRUST_DOMAIN, required=True, help="Such as example.org.")
@click.option("--key-type", type=click.Choice(_KEY_TYPES), default="p256", show_default=True, help="Kind of both keys.")
@options.passphrase_file("Passphrase that encrypts the keys.")
@click.option(
    "--offline-root", metavar="DIR", type=click.Path(path_type=Path), help="Keep the root's key in DIR, not in D.",
)  # fmt: skip
@click.option(
    "--import-root", metavar="CERT", type=options.FILE, help="Sign the intermediate by this root instead of a new one."
)
@click.option(
    "--import-root-key", metavar="KEY", type=click.Path(path_type=Path), help="The imported root's key; not copied.",
)  # fmt: skip
@click.option(
    "--import-root-passphrase-file", metavar="F", type=options.FILE, help="Passphrase of the imported root's key."
)
@click.option("--root-lifetime", type=params.DURATION, help="Of a new root.  [default: 3650d]")
@click.option(
    "--intermediate-lifetime", type=params.DURATION, help="Ends with an imported root at the latest.  [default: 365d]",
)  # fmt: skip
@click.option(
    "--force", is_flag=True, help="Replace an authority that is there: what it issued will not verify any more."
)
@options.as_json
@click.pass_obj
def command(
    session: Session, /, *, directory: Path, passphrase_file: str | None, as_json: bool, **asked: object
) -> None:
    """Create a root and an intermediate authority in the directory D (0700).

    D/ca.crt is the trust bundle. The keys are encrypted when there is a passphrase: on a terminal it
    is asked for, elsewhere --passphrase-file gives it.
    """
    from citadel_py.cli.progress import working
    from citadel_py.store import authority_dir

    plan = Plan(directory, **asked)  # type: ignore[arg-type]  # click has made each of them of its type
    _check_combination(plan)
    if not plan.force:
        authority_dir.check_vacant(directory, plan.offline_root)
    now = session.now()
    imported = _read_imported_root(session, plan, now)
    passphrase = _choose_passphrase(session, passphrase_file)
    with working("making keys"):
        root, intermediate = _make_authorities(plan, imported, now)
    _keep(plan, root, intermediate, passphrase=passphrase, is_imported=imported is not None, now=now)
    facts = _facts(
        plan, root, intermediate, is_encrypted=passphrase is not None, is_imported=imported is not None, now=now
    )
    _answer(session, plan, facts, now=now, as_json=as_json)


def _check_combination(plan: Plan) -> None:
    """Raise UsageError where flags exclude or need each other."""
    if (plan.import_root is None) != (plan.import_root_key is None):
        raise click.UsageError("--import-root and --import-root-key belong together")
    if plan.import_root is None:
        if plan.import_root_passphrase_file is not None:
            raise click.UsageError("--import-root-passphrase-file is for --import-root")
        return
    for flag, value in {"--offline-root": plan.offline_root, "--root-lifetime": plan.root_lifetime}.items():
        if value is not None:
            raise click.UsageError(f"{flag} is for a new root, not for --import-root")


def _read_imported_root(session: Session, plan: Plan, now: datetime) -> Authority | None:
    from citadel_py.cli.founding import check_imported_root
    from citadel_py.cli.inputs import naming, read_certificates, read_passphrase
    from citadel_py.core.profile import Authority
    from citadel_py.store.keys import read_key

    if plan.import_root is None or plan.import_root_key is None:
        return None
    certificate = read_certificates(session, plan.import_root, flag="--import-root")[0]
    flag = "--import-root-passphrase-file"
    passphrase = read_passphrase(session, plan.import_root_passphrase_file, flag=flag)
    root = Authority(certificate, read_key(plan.import_root_key, passphrase=passphrase))
    with naming(plan.import_root):
        check_imported_root(root, plan.trust_domain, now=now)
    return root


def _choose_passphrase(session: Session, source: str | None) -> bytes | None:
    from citadel_py.cli.inputs import ask_new_passphrase, read_passphrase

    if source is None and session.may_prompt:
        return ask_new_passphrase(session, "the authority's keys")
    passphrase = read_passphrase(session, source)
    if passphrase is None:
        session.note("the authority's keys are not encrypted")
        session.hint("--passphrase-file FILE encrypts them")
    return passphrase


def _make_authorities(plan: Plan, imported: Authority | None, now: datetime) -> tuple[Authority, Authority]:
    """The root and the intermediate, proven to work together."""
    from citadel_py.cli.founding import new_intermediate, new_root
    from citadel_py.core.keys import KeyType
    from citadel_py.core.profile import INTERMEDIATE_LIFETIME, ROOT_LIFETIME

    key_type = KeyType(plan.key_type)
    until = now + (plan.intermediate_lifetime or INTERMEDIATE_LIFETIME)
    if imported is None:
        root = new_root(plan.trust_domain, key_type, plan.root_lifetime or ROOT_LIFETIME, now=now)
    else:
        root = imported
        until = min(until, imported.certificate.not_valid_after_utc)
    return root, new_intermediate(plan.trust_domain, root, key_type, now=now, until=until)


def _keep(
    plan: Plan, root: Authority, intermediate: Authority, *, passphrase: bytes | None, is_imported: bool, now: datetime
) -> None:
    from citadel_py.cli.founding import founded
    from citadel_py.store import authority_dir

    authority_dir.create(
        plan.directory,
        root=root.certificate if is_imported else root,
        intermediate=intermediate,
        bundle=founded(root.certificate, intermediate, plan.trust_domain, now=now),
        passphrase=passphrase,
        root_directory=plan.offline_root,
        force=plan.force,
    )


def _facts(
    plan: Plan, root: Authority, intermediate: Authority, *, is_encrypted: bool, is_imported: bool, now: datetime
) -> Facts:
    from citadel_py.cli.describe import certificate_facts

    root_key = None if is_imported else str((plan.offline_root or plan.directory / "root") / "tls.key")
    return {
        "trust_domain": str(plan.trust_domain),
        "directory": str(plan.directory),
        "bundle": str(plan.directory / "ca.crt"),
        "root_key": root_key,
        "keys_are_encrypted": is_encrypted,
        "certificates": [certificate_facts(each.certificate, now=now) for each in (root, intermediate)],
    }


def _answer(session: Session, plan: Plan, facts: Facts, *, now: datetime, as_json: bool) -> None:
    from citadel_py.cli.blocks import certificate_row
    from citadel_py.cli.render import fields, heading

    if as_json:
        session.answer_json(facts)
        return
    rows = [
        *(certificate_row(each, now=now) for each in facts["certificates"]),
        ("bundle", facts["bundle"]),
        ("root key", facts["root_key"] or "(imported, not copied)"),
        ("keys are", "encrypted" if facts["keys_are_encrypted"] else "not encrypted"),
    ]
    session.answer(heading("authority", f"for {plan.trust_domain} in {plan.directory}") + fields(rows))
    session.hint(f"citadel-py issue spiffe://{plan.trust_domain}/NAME --dir {plan.directory} --out NAME")
