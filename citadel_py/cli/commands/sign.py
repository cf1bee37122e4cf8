"""`sign`: a CSR becomes a certificate; its key stays where it is."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session
from citadel_py.core.spiffe import SpiffeID


@frame.command(
    "sign",
    examples=[
        "citadel-py sign web.csr --id spiffe://example.org/web --dir /srv/ca > web.crt",
        "citadel-py sign web.csr --id spiffe://example.org/web --dir /srv/ca --ttl 1h --dns web.shop",
        "openssl req -new -key web.key -subj / | citadel-py sign - --id spiffe://example.org/web --dir /srv/ca",
    ],
    codes=[Exit.UNAVAILABLE, Exit.DENIED],
    meanings={Exit.DONE: "signed: the chain is on stdout", Exit.BAD_INPUT: "bad input, or a CSR that is refused"},
)
@click.argument("csr_file", type=options.FILE)
@click.option("--id", "wanted_id", type=params.SPIFFE_ID, required=True, help="The ID that the certificate gets.")
@options.directory
@options.ledger
@options.ttl
@options.dns
@options.passphrase_file("Passphrase of the authority's key.")
@options.as_json
@click.pass_obj
def command(
    session: Session, /, *, csr_file: str, wanted_id: SpiffeID, directory: Path, ledger: str | None,
    passphrase_file: str | None,
    ttl: timedelta | None, dns: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Sign CSR_FILE (PEM or DER, - is stdin) and print the chain: leaf, then intermediates.

    Of the CSR only its public key is used. One that breaks a rule is refused with the rule's name:
    then nothing is signed, printed or recorded.
    """
    from citadel_py.cli.authority import OfflineAuthority, note_if_shortened
    from citadel_py.cli.describe import certificate_facts
    from citadel_py.cli.inputs import naming, read_input
    from citadel_py.core.csr import parse_csr
    from citadel_py.core.policy import Wanted

    now = session.now()
    data = read_input(session, csr_file, flag="CSR_FILE")
    with naming(csr_file):
        request = parse_csr(data)
    authority = OfflineAuthority.open(session, directory, passphrase_file, now=now, ledger=ledger)
    svid = authority.issue(request, Wanted(wanted_id, dns, ttl=ttl), now=now)
    if as_json:
        certificates = [certificate_facts(each, now=now) for each in svid.chain]
        document = {"id": str(svid.id), "serial": svid.serial, "certificates": certificates}
        session.answer_json({**document, "chain_pem": svid.chain_pem().decode()})
    else:
        session.answer(svid.chain_pem())
    note_if_shortened(session, svid, ttl, now=now)
