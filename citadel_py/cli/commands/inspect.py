"""`inspect`: what is in certificates, CSRs, keys and bundles. It judges, and its exit code does not depend on that."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from citadel_py.cli import frame, options
from citadel_py.cli.exits import Exit, report
from citadel_py.cli.session import Session, printable
from citadel_py.core.errors import CitadelError

if TYPE_CHECKING:
    from citadel_py.cli.describe import Facts
    from citadel_py.cli.pieces import Reader


@frame.command(
    "inspect",
    examples=[
        "citadel-py inspect web/tls.crt",
        "citadel-py inspect /srv/ca",
        "openssl s_client -connect localhost:8443 -showcerts </dev/null | citadel-py inspect -",
        "citadel-py inspect --json web.csr",
    ],
    meanings={Exit.DONE: "everything in it could be read", Exit.BAD_INPUT: "something in it cannot be read"},
)
@click.argument("file", type=options.FILE)
@options.passphrase_file("Passphrase of keys and PKCS#12.")
@options.as_json
@click.pass_obj
def command(session: Session, file: str, passphrase_file: str | None, *, as_json: bool) -> int:
    """Show what is in FILE (- is stdin, or a directory of `init` or `issue`).

    FILE may hold certificates, a CSR, keys, a SPIFFE bundle or PKCS#12, as PEM or DER. Of a private
    key only its kind and the hash of its public key are shown.
    """
    from citadel_py.cli.blocks import block
    from citadel_py.cli.inputs import read_passphrase
    from citadel_py.cli.pieces import Reader

    reader = Reader(session.now(), read_passphrase(session, passphrase_file))
    objects = list(_objects(session, reader, file))
    if as_json:
        session.answer_json({"objects": objects})
    else:
        session.answer("\n".join(f"{printable(facts['source'])}: {block(facts, now=reader.now)}" for facts in objects))
    return _report_problems(session, objects)


def _objects(session: Session, reader: Reader, source: str) -> Iterator[Facts]:
    from citadel_py.cli.describe import error_facts
    from citadel_py.cli.inputs import read_input
    from citadel_py.cli.pieces import UNREADABLE_TYPE, files_of

    if not Path(source).is_dir():
        yield from _read(reader, source, read_input(session, source, flag="FILE"))
        return
    for path in files_of(Path(source)):
        try:
            yield from _read(reader, str(path), read_input(session, str(path), flag="FILE"))
        except CitadelError as error:  # the file cannot be opened: that hides none of the others
            yield {"source": str(path), "file_mode": None, "type": UNREADABLE_TYPE, "error": error_facts(error)}


def _read(reader: Reader, source: str, data: bytes) -> Iterator[Facts]:
    path = Path(source)
    mode = f"{stat.S_IMODE(path.stat().st_mode):04o}" if path.is_file() else None
    for facts in reader.read(data):
        yield {"source": source, "file_mode": mode, **facts}


def _report_problems(session: Session, objects: list[Facts]) -> Exit:
    from citadel_py.cli.pieces import UNREADABLE_TYPE, Unreadable

    code = Exit.DONE
    for facts in objects:
        if _is_open_key(facts):
            session.warn(f"others may read the private key in {facts['source']}")
            session.hint(f"chmod 600 {facts['source']}")
        if facts["type"] == UNREADABLE_TYPE:
            error = facts["error"]
            what = error["message"] if facts["source"] in error["message"] else f"{facts['source']}: {error['message']}"
            code = report(Unreadable(what, rule=error["rule"]), session)
    return code


def _is_open_key(facts: Facts) -> bool:
    is_plain = facts["type"] == "private_key" and not facts["is_encrypted"]
    return is_plain and int(facts["file_mode"] or "0", 8) & 0o077 != 0
