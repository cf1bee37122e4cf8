"""The ledger as the `ledger` commands open it, and what they say about it as facts and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from citadel_py.cli.authority import WRITER
from citadel_py.cli.inputs import naming, read_certificates, read_input
from citadel_py.cli.render import fields, heading, in_words, moment_with_words, rfc3339
from citadel_py.cli.session import JSON_VERSION, Session
from citadel_py.core.errors import BadInput, InvalidConfiguration
from citadel_py.core.keys import PublicKey
from citadel_py.core.ledger import Head, canonical_time
from citadel_py.core.ledger_heads import Purpose, SignedHead, authority_keys
from citadel_py.store import authority_dir
from citadel_py.store.chains import Chain
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.rows import Record
from citadel_py.store.search import Search

Facts: TypeAlias = dict[str, Any]

LONG_UNSIGNED = timedelta(hours=1)  # a service signs every minute
_MAX_HEADS_BYTES = 16 << 20


def open_ledger(directory: Path, ledger: str | None, *, now: datetime) -> SQLLedger:
    """The ledger that is there. Raises InvalidConfiguration (`ledger_absent`), LedgerUnavailable."""
    place = ledger or directory / authority_dir.LEDGER
    if isinstance(place, Path) and not place.exists():
        raise InvalidConfiguration(
            f"no ledger at {place}", rule="ledger_absent", hint="the first certificate or join token makes one"
        )
    return SQLLedger.open(place, writer=WRITER, now=lambda: now)


def known_keys(session: Session, directory: Path, more: str | None) -> Mapping[str, PublicKey]:
    """Public keys of the authorities in the directory, and of those in a PEM file. Raises BadInput."""
    others = read_certificates(session, more, flag="--authorities") if more else ()
    return authority_keys((*others, *authority_dir.certificates(directory)))


def read_heads(session: Session, source: str) -> Mapping[str, Head]:
    """The ends of chains in what `ledger verify --json` printed. Raises BadInput (`ledger_heads_unreadable`)."""
    data = read_input(session, source, flag="--heads", limit=_MAX_HEADS_BYTES)
    with naming(source):
        try:
            chains = json.loads(data)["chains"]
            return {each["writer"]: Head(int(each["last"]), str(each["hash"])) for each in chains}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadInput("not what ledger verify --json prints", rule="ledger_heads_unreadable") from error


def entry_facts(record: Record) -> Facts:
    """The fields of the chain's text, in the same words and forms, and the hash over them."""
    entry = record.entry
    return {
        "writer": record.writer,
        "position": record.position,
        "kind": entry.kind,
        "serial": entry.serial,
        "spiffe_id": entry.spiffe_id,
        "caller": entry.caller,
        "method": entry.method,
        "public_key_sha256": entry.public_key_sha256,
        "authority_id": entry.authority_id,
        "not_before": canonical_time(entry.not_before),
        "not_after": canonical_time(entry.not_after),
        "request_id": entry.request_id,
        "time": canonical_time(entry.time),
        "hash": record.hash,
    }


def statement_facts(signed: SignedHead) -> Facts:
    return {
        "writer": signed.writer,
        "position": signed.head.position,
        "hash": signed.head.hash,
        "time": canonical_time(signed.time),
        "authority_id": signed.authority_id,
        "signature": signed.signature.hex(),
    }


def chain_facts(chain: Chain) -> Facts:
    signed = chain.signed
    return {
        "writer": chain.writer,
        "first": chain.first,
        "last": chain.position,
        "hash": chain.hash,
        "signed_to": chain.signed_to,
        "signed_at": canonical_time(signed.time) if signed else None,
        "authority_id": signed.authority_id if signed else None,
        "unsigned_since": canonical_time(chain.unsigned_since) if chain.unsigned_since else None,
    }


def exported(ledger: SQLLedger, wanted: Search) -> Iterator[str]:
    """One JSON document per line: checkpoints, entries by chain, then signed heads, each with its `type`."""
    statements = ledger.statements()
    yield from _lines(
        "checkpoint", (statement_facts(each) for each in statements if each.purpose is Purpose.CHECKPOINT)
    )
    yield from _lines("entry", map(entry_facts, ledger.by_chain(wanted)))
    yield from _lines("head", (statement_facts(each) for each in statements if each.purpose is Purpose.HEAD))


def _lines(kind: str, all_facts: Iterable[Facts]) -> Iterator[str]:
    for facts in all_facts:
        yield json.dumps({"version": JSON_VERSION, "type": kind, **facts}) + "\n"


def entry_block(record: Record, *, now: datetime) -> str:
    entry = record.entry
    return heading(entry.kind, entry.spiffe_id) + fields(
        [
            ("recorded", moment_with_words(entry.time, now)),
            ("serial", entry.serial),
            ("caller", f"{entry.caller} ({entry.method})"),
            ("valid from", rfc3339(entry.not_before)),
            ("valid to", moment_with_words(entry.not_after, now)),
            ("key sha256", entry.public_key_sha256),
            ("authority id", entry.authority_id),
            ("request", entry.request_id),
            ("place", f"entry {record.position} of {record.writer}"),
        ]
    )


def chain_block(chain: Chain, *, now: datetime) -> str:
    count = chain.position - chain.start.position
    signed = chain.signed
    return heading("chain", chain.writer) + fields(
        [
            ("entries", f"{count} ({chain.first} to {chain.position})" if count else "0"),
            ("pruned", str(chain.start.position) if chain.start.position else ""),
            ("end", chain.hash),
            ("signed", f"to entry {chain.signed_to}"),
            ("signed at", moment_with_words(signed.time, now) if signed else ""),
            ("authority id", signed.authority_id if signed else ""),
        ]
    )


def warn_of_unsigned(session: Session, chain: Chain, *, now: datetime) -> None:
    """Say so where entries have waited for a signature for longer than a running service lets them."""
    if chain.unsigned_since is None or now - chain.unsigned_since < LONG_UNSIGNED:
        return
    session.warn(
        f"{chain.position - chain.signed_to} entries of writer {chain.writer} are not signed, the oldest for "
        f"{in_words(now - chain.unsigned_since)}: only the hash chain vouches for them"
    )
    session.hint("citadel-py ledger sign --dir D")
