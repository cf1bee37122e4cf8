"""One-time join tokens in the ledger's database. Only SHA-256 digests are kept, never a token."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, insert, select, update

from citadel_py.core.errors import CitadelError, Unauthenticated
from citadel_py.core.ports import JoinToken, Now
from citadel_py.core.spiffe import SpiffeID
from citadel_py.store.database import Database
from citadel_py.store.schema import JOIN_TOKENS, from_microseconds, to_microseconds

KEPT_AFTER_EXPIRY = timedelta(days=1)  # so long the log can say 'used' or 'expired' in place of 'unknown'

_NOBODYS = "0"  # no digest: those are 64 digits


class SQLTokens:
    """core.ports.TokenStore. `now` is read only to forget old tokens."""

    def __init__(self, database: Database, now: Now) -> None:
        self._database = database
        self._now = now
        columns, dialect = JOIN_TOKENS.c, database.engine.dialect
        fresh = (columns.digest == bindparam("d")) & columns.used_at.is_(None) & (columns.expires_at > bindparam("n"))
        # Compiled once: text and placeholders follow the dialect. Parameters are positional.
        self._insert = str(insert(JOIN_TOKENS).compile(dialect=dialect))
        self._prune = str(delete(JOIN_TOKENS).where(columns.expires_at < bindparam("n")).compile(dialect=dialect))
        self._select = str(select(JOIN_TOKENS).where(columns.digest == bindparam("d")).compile(dialect=dialect))
        self._use = str(update(JOIN_TOKENS).where(fresh).values(used_at=bindparam("u")).compile(dialect=dialect))

    def add(self, token: JoinToken) -> None:
        """Keep a new token, durably; forget those that expired more than a day ago. Raises LedgerUnavailable."""
        row = (token.digest.hex(), str(token.id), to_microseconds(token.expires_at), None)
        with self._database.writing() as cursor:
            cursor.execute(self._prune, (to_microseconds(self._now() - KEPT_AFTER_EXPIRY),))
            try:
                cursor.execute(self._insert, row)
            except self._database.errors as error:
                if not self._database.breaks_constraint(error, "join_tokens_pkey", "join_tokens.digest"):
                    raise  # a failure of the database, none of the caller's
                raise CitadelError("this join token exists already", rule="duplicate_join_token") from error

    def find(self, digest: bytes, *, now: datetime) -> JoinToken:
        """The usable token. Raises Unauthenticated (`join_token_unknown`, `_used`, `_expired`), LedgerUnavailable."""
        with self._database.reading() as cursor:
            cursor.execute(self._select, (digest.hex(),))
            row = cursor.fetchone()
        if row is None:
            raise _refused("unknown", "was never made here, or is long expired")
        _, spiffe_id, expires_at, used_at = row
        if used_at is not None:
            raise _refused("used", f"was used at {from_microseconds(used_at):%FT%TZ}")
        if expires_at <= to_microseconds(now):
            raise _refused("expired", f"expired at {from_microseconds(expires_at):%FT%TZ}")
        return JoinToken(digest, SpiffeID.parse(spiffe_id), from_microseconds(expires_at))

    def check(self) -> None:
        """Look up and use up a token that nobody has. Raises LedgerUnavailable where that cannot be done."""
        with self._database.writing() as cursor:
            cursor.execute(self._select, (_NOBODYS,))
            cursor.fetchall()
            cursor.execute(self._use, (0, _NOBODYS, 0))

    def redeem(self, digest: bytes, *, now: datetime) -> None:
        """Use the token up, durably; of several at once exactly one succeeds. Raises as `find`."""
        moment = to_microseconds(now)
        with self._database.writing() as cursor:
            cursor.execute(self._use, (moment, digest.hex(), moment))
            if cursor.rowcount == 1:
                return
        self.find(digest, now=now)
        raise _refused("used", "was being used by somebody else")


def _refused(state: str, reason: str) -> Unauthenticated:
    hint = "make a new one with: citadel-py token create"
    return Unauthenticated(f"the join token {reason}", rule=f"join_token_{state}", hint=hint)
