"""Rows of the ledger's tables and what they mean. Rows are read by place: any driver's will do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from citadel_py.core.errors import BadInput, LedgerUnavailable, VerificationFailed
from citadel_py.core.ledger import Head, LedgerEntry, chain_hash
from citadel_py.core.ledger_heads import Purpose, SignedHead
from citadel_py.store.schema import from_microseconds, to_microseconds

RESTORE = "restore the ledger from a backup"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Record:
    """An entry in its place."""

    writer: str
    position: int
    entry: LedgerEntry
    hash: str


def to_row(writer: str, position: int, entry: LedgerEntry, digest: str) -> tuple[Any, ...]:
    """In the order of LEDGER's columns."""
    return (
        writer,
        position,
        entry.kind,
        entry.serial,
        entry.spiffe_id,
        entry.caller,
        entry.method,
        entry.public_key_sha256,
        entry.authority_id,
        to_microseconds(entry.not_before),
        to_microseconds(entry.not_after),
        entry.request_id,
        to_microseconds(entry.time),
        digest,
    )


def to_record(row: Sequence[Any]) -> Record:
    """Raises LedgerUnavailable (`ledger_corrupt`) for what this program never wrote."""
    try:
        return Record(row[0], row[1], _to_entry(row), row[-1])
    except (TypeError, OverflowError) as error:
        raise LedgerUnavailable(
            f"entry {row[1]} of {row[0]} cannot be read: {error}", rule="ledger_corrupt", hint=RESTORE
        ) from error


def to_head(row: Sequence[Any]) -> Head:
    """Raises LedgerUnavailable for what this program never wrote: going on from it would hide that."""
    match row:
        case (int() as position, str() as digest) if _HASH.fullmatch(digest):
            return Head(position, digest)
        case _:
            raise LedgerUnavailable("the end of the ledger's chain is damaged", rule="ledger_corrupt", hint=RESTORE)


def to_signed_row(signed: SignedHead) -> tuple[Any, ...]:
    """In the order of LEDGER_HEADS' columns."""
    return (
        str(signed.purpose),
        signed.writer,
        signed.head.position,
        signed.head.hash,
        to_microseconds(signed.time),
        signed.authority_id,
        signed.signature.hex(),
    )


def to_signed(row: Sequence[Any]) -> SignedHead:
    """Raises VerificationFailed for what this program never wrote: whoever wrote it has no key."""
    purpose, writer, position, digest, time, authority_id, signature = row
    try:
        return SignedHead(
            Purpose(purpose),
            writer,
            to_head((position, digest)),
            from_microseconds(time),
            str(authority_id),
            bytes.fromhex(signature),
        )
    except (TypeError, ValueError, OverflowError, LedgerUnavailable) as error:
        raise VerificationFailed(
            f"the signed {purpose!a} of writer {writer!a} was changed", rule="ledger_signature_invalid"
        ) from error


def walk(rows: Iterable[Sequence[Any]], start: Head, through: Head | None = None) -> Head:
    """The end of the chain that these rows of one writer continue, without a gap.

    `through` is a place that the chain is known to have had. Raises VerificationFailed
    (`ledger_entry_missing`, `ledger_entry_changed`, `ledger_head_differs`).
    """
    head = start
    places = [through] if through else []
    for row in rows:
        head = follow(row, head)
        check_places(row[0], places, head)
    return head


def check_places(writer: str, places: Iterable[Head], head: Head) -> None:
    """Raise VerificationFailed where the chain once was another at this position."""
    for place in places:
        if place.position == head.position and place.hash != head.hash:
            raise VerificationFailed(
                f"entry {head.position} of writer {writer!a} is not the one that was signed or noted before",
                rule="ledger_head_differs",
            )


def follow(row: Sequence[Any], previous: Head) -> Head:
    """The head after this row. Raises VerificationFailed unless the row continues the chain."""
    writer, position, digest = row[0], row[1], row[-1]
    if position != previous.position + 1:
        raise VerificationFailed(
            f"entry {previous.position + 1} of writer {writer!a} is missing", rule="ledger_entry_missing"
        )
    try:
        computed = chain_hash(bytes.fromhex(previous.hash), writer, position, _to_entry(row)).hex()
    except (TypeError, OverflowError):  # a value that this program never wrote
        computed = None
    if computed != digest:
        raise VerificationFailed(
            f"entry {position} of writer {writer!a}, or the one before it, was changed", rule="ledger_entry_changed"
        )
    return Head(position, digest)


def check_end(writer: str, written: Head, found: Head) -> None:
    """Raise VerificationFailed where a chain does not end where its writer says."""
    if found != written:
        raise VerificationFailed(
            f"the chain of writer {writer!a} ends with entry {found.position}, and {written.position!a} were written",
            rule="ledger_end_missing",
        )


def check_not_shorter(writer: str, head: Head, reached: Head | None) -> None:
    """Raise VerificationFailed where a chain ends before a place that it once had reached."""
    if reached is not None and reached.position > head.position:
        raise VerificationFailed(
            f"the chain of writer {writer!a} ends with entry {head.position}, and had reached {reached.position}",
            rule="ledger_end_missing",
        )


def never_signed(writer: str) -> VerificationFailed:
    """The error about a chain that no statement vouches for."""
    return VerificationFailed(
        f"the chain of writer {writer!a} was never signed, or its signed head was taken away",
        rule="ledger_unsigned",
        hint="if you know that it is right: citadel-py ledger sign --adopt",
    )


def check_text(*texts: str) -> None:
    """Raise BadInput for text that not every database keeps as it is."""
    if "\0" in "".join(texts):
        raise BadInput("text with a NUL character cannot be recorded", rule="ledger_text")


def moment_of(row: Sequence[Any]) -> datetime:
    """When an entry was recorded."""
    return from_microseconds(row[-2])


def _to_entry(row: Sequence[Any]) -> LedgerEntry:
    return LedgerEntry(
        kind=row[2],
        serial=row[3],
        spiffe_id=row[4],
        caller=row[5],
        method=row[6],
        public_key_sha256=row[7],
        authority_id=row[8],
        not_before=from_microseconds(row[9]),
        not_after=from_microseconds(row[10]),
        request_id=row[11],
        time=from_microseconds(row[12]),
    )
