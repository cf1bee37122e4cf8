"""Signed statements about a chain of the ledger: how far it had come, and from where on it is kept.

The hash chain finds whoever changes a part of it. Whoever writes all of it anew makes a chain that
is whole in itself, but not a statement that an authority's key has signed. No storage here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from cryptography import x509

from citadel_py.core.errors import VerificationFailed
from citadel_py.core.keys import PublicKey, is_signature_valid, sign_message
from citadel_py.core.ledger import Head, canonical_time
from citadel_py.core.profile import Authority, subject_key_id

_PREFIX = b"citadel-py ledger statement v1\n"  # see keys.sign_message on what it keeps apart


class Purpose(StrEnum):
    """What a statement says."""

    HEAD = "head"  # at this moment the chain ended here
    CHECKPOINT = "checkpoint"  # the entries up to here were pruned: the chain goes on from here


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A place in a writer's chain under the signature of an authority. `time` is aware UTC."""

    purpose: Purpose
    writer: str
    head: Head
    time: datetime
    authority_id: str
    signature: bytes = b""

    @property
    def statement(self) -> bytes:
        """What is signed: the prefix, then JSON with sorted keys and without spaces, ASCII."""
        record = {
            "purpose": self.purpose,
            "writer": self.writer,
            "position": self.head.position,
            "hash": self.head.hash,
            "time": canonical_time(self.time),
            "authority_id": self.authority_id,
        }
        return _PREFIX + json.dumps(record, sort_keys=True, separators=(",", ":")).encode()

    def check(self, keys: Mapping[str, PublicKey]) -> None:
        """Raise VerificationFailed unless one of these authorities signed it.

        Rules: `ledger_authority_unknown`, `ledger_signature_invalid`.
        """
        what = f"the {self.purpose} at entry {self.head.position!a} of writer {self.writer!a}"
        key = keys.get(self.authority_id)
        if key is None:
            raise VerificationFailed(
                f"{what} is signed by the authority {self.authority_id[:80]!a}, which is not known here",
                rule="ledger_authority_unknown",
                hint="name the certificates of earlier authorities with --authorities FILE",
            )
        if not is_signature_valid(key, self.signature, self.statement):
            raise VerificationFailed(
                f"{what} does not verify with the key of the authority {self.authority_id}",
                rule="ledger_signature_invalid",
            )


@dataclass(frozen=True, slots=True)
class Seal:
    """The authority that signs statements, and the public keys by authority id that verify earlier ones."""

    authority: Authority = field(repr=False)
    keys: Mapping[str, PublicKey]

    @classmethod
    def of(cls, authority: Authority, known: Iterable[x509.Certificate] = ()) -> Seal:
        """`known` are certificates of authorities that may have signed earlier."""
        return cls(authority, authority_keys((*known, authority.certificate)))

    def sign(self, purpose: Purpose, writer: str, head: Head, *, now: datetime) -> SignedHead:
        unsigned = SignedHead(purpose, writer, head, now, self.authority.id)
        signature = sign_message(self.authority.key, unsigned.statement)
        return SignedHead(purpose, writer, head, now, self.authority.id, signature)


def authority_keys(certificates: Iterable[x509.Certificate]) -> dict[str, PublicKey]:
    """The public keys of authorities by authority id. Other kinds of keys than ours are left out."""
    keys = ((subject_key_id(each), each.public_key()) for each in certificates)
    return {id: key for id, key in keys if isinstance(key, PublicKey)}
