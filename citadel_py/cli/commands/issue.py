"""`issue`: an X.509-SVID without a service: key, chain and bundle, in the ledger before they are on disk."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session
from citadel_py.core.errors import Unavailable
from citadel_py.core.spiffe import SpiffeID

if TYPE_CHECKING:
    from citadel_py.cli.authority import OfflineAuthority
    from citadel_py.cli.outputs import Stage
    from citadel_py.core.keys import PrivateKey
    from citadel_py.core.x509svid import X509SVID

_KEY_TYPES = ("p256", "p384", "rsa2048", "rsa3072", "rsa4096")


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the command line asks for."""

    id: SpiffeID
    dns: tuple[str, ...]
    ttl: timedelta | None
    key_type: str
    p12_passphrase: bytes | None  # None: PEM


@frame.command(
    "issue",
    examples=[
        "citadel-py issue spiffe://example.org/web --dir /srv/ca --out web",
        "citadel-py issue spiffe://example.org/ns/shop/sa/web --dir /srv/ca --out web --ttl 1h --dns web.shop",
        "citadel-py issue spiffe://example.org/web --dir /srv/ca --out web --format p12 --p12-passphrase-file F",
    ],
    codes=[Exit.UNAVAILABLE, Exit.DENIED],
    meanings={Exit.DONE: "issued: the files are in O", Exit.BAD_INPUT: "bad input, or O holds a key already"},
)
@click.argument("id", type=params.SPIFFE_ID)
@options.directory
@options.ledger
@click.option(
    "--out", metavar="O", required=True, type=click.Path(path_type=Path), help="Directory for the files (made 0700)."
)
@options.ttl
@options.dns
@click.option("--key-type", type=click.Choice(_KEY_TYPES), default="p256", show_default=True, help="Kind of key.")
@click.option(
    "--format", "file_format", type=click.Choice(["pem", "p12"]), default="pem", show_default=True,
    help="p12 writes tls.p12 in place of tls.key.",
)  # fmt: skip
@click.option("--p12-passphrase-file", metavar="F", type=options.FILE, help="Passphrase of tls.p12. - is stdin.")
@options.passphrase_file("Passphrase of the authority's key.")
@click.option("--force", is_flag=True, help="Replace the key and certificate in O.")
@options.as_json
@click.pass_obj
def command(
    session: Session, /, *, id: SpiffeID, directory: Path, ledger: str | None, out: Path,
    passphrase_file: str | None,
    ttl: timedelta | None, dns: tuple[str, ...], key_type: str, file_format: str, p12_passphrase_file: str | None,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Mint an X.509-SVID for ID, a whole SPIFFE ID with a path.

    Writes O/tls.crt (leaf, then intermediates), O/tls.key (0600) and O/ca.crt (the bundle). They
    appear together: if it stops half way, O lacks its key, and holds no parts of two certificates.
    """
    from citadel_py.cli.authority import OfflineAuthority, note_if_shortened
    from citadel_py.cli.outputs import staging

    passphrase = _p12_passphrase(session, file_format, p12_passphrase_file)
    wish = _Wish(id, dns, ttl, key_type, passphrase)
    now = session.now()
    with staging(out, force=force) as stage:
        authority = OfflineAuthority.open(session, directory, passphrase_file, now=now, ledger=ledger)
        svid, files = _issue(stage, authority, wish, now=now)
    _answer(session, svid, files, now=now, as_json=as_json)
    note_if_shortened(session, svid, ttl, now=now)


def _p12_passphrase(session: Session, file_format: str, source: str | None) -> bytes | None:
    """The passphrase of tls.p12; None for PEM. Raises UsageError where it is missing or out of place."""
    from citadel_py.cli.inputs import read_passphrase

    if file_format != "p12":
        if source is not None:
            raise click.UsageError("--p12-passphrase-file is for --format p12")
        return None
    passphrase = read_passphrase(session, source, flag="--p12-passphrase-file")
    if passphrase is not None:
        return passphrase
    if not session.may_prompt:
        raise click.UsageError("--format p12 needs --p12-passphrase-file")
    text: str = click.prompt("Passphrase for tls.p12", hide_input=True, confirmation_prompt="Once more", err=True)
    return text.encode()


def _issue(
    stage: Stage, authority: OfflineAuthority, wish: _Wish, *, now: datetime
) -> tuple[X509SVID, tuple[Path, ...]]:
    """Sign, record, write. What can fail before the certificate exists is done before."""
    from citadel_py.cli.outputs import BUNDLE, KEY
    from citadel_py.cli.progress import working
    from citadel_py.core.csr import RequestedNames, SigningRequest
    from citadel_py.core.keys import KeyType, generate_key, private_key_pem
    from citadel_py.core.policy import Wanted

    with working("making a key"):
        key = generate_key(KeyType(wish.key_type))
    stage.add(BUNDLE, authority.bundle.to_pem())
    if wish.p12_passphrase is None:
        stage.add(KEY, private_key_pem(key))
    request = SigningRequest(key.public_key(), RequestedNames())
    svid = authority.issue(request, Wanted(wish.id, wish.dns, ttl=wish.ttl), now=now)
    try:
        return svid, _write(stage, svid, key, wish.p12_passphrase)
    except Unavailable as error:
        hint = "the certificate without its key is of no use: run the same command again for another one"
        message = (
            f"certificate {svid.serial} is signed and in the ledger, but its files are not written: {error.message}"
        )
        raise Unavailable(message, rule=error.rule, hint=(*error.hints, hint)) from error


def _write(stage: Stage, svid: X509SVID, key: PrivateKey, p12_passphrase: bytes | None) -> tuple[Path, ...]:
    from citadel_py.cli.outputs import CHAIN, PKCS12
    from citadel_py.cli.pkcs12 import pkcs12_store

    stage.add(CHAIN, svid.chain_pem())
    if p12_passphrase is not None:
        stage.add(PKCS12, pkcs12_store(svid, key, p12_passphrase))
    return stage.commit()


def _answer(session: Session, svid: X509SVID, files: tuple[Path, ...], *, now: datetime, as_json: bool) -> None:
    from citadel_py.cli.blocks import certificate_row
    from citadel_py.cli.describe import certificate_facts
    from citadel_py.cli.render import fields, heading

    certificates = [certificate_facts(each, now=now) for each in svid.chain]
    if as_json:
        document = {"id": str(svid.id), "serial": svid.serial, "certificates": certificates}
        session.answer_json({**document, "files": {path.name: str(path) for path in files}})
        return
    rows = [certificate_row(facts, now=now) for facts in certificates]
    session.answer(heading("issued", str(svid.id)) + fields([*rows, ("file", [str(path) for path in files])]))
