"""Callers that join: machines with a one-time token that an operator made for one identity."""

from __future__ import annotations

from datetime import datetime
from functools import partial

from citadel_py.ca.authn import Attested, CallCredentials
from citadel_py.ca.ledger_thread import LedgerThread, run_in
from citadel_py.core.errors import Unauthenticated
from citadel_py.core.join_token import claims_to_be_join_token, is_join_token, token_digest
from citadel_py.core.policy import Caller, Method
from citadel_py.core.ports import TokenStore


class JoinTokenAuthenticator:
    """Looks a token up by its digest. It is used up later, so that a bad CSR does not burn it.

    Tokens on another machine want a `thread`.
    """

    def __init__(self, tokens: TokenStore, thread: LedgerThread | None = None) -> None:
        self._tokens = tokens
        self._thread = thread

    async def attest(self, credentials: CallCredentials, *, now: datetime) -> Attested | None:
        """See Authenticator."""
        text = credentials.bearer
        if text is None or not claims_to_be_join_token(text):
            return None
        if not is_join_token(text):  # spares the store a look
            raise Unauthenticated("join token: it has the wrong form", rule="join_token_malformed")
        digest = token_digest(text)
        token = await run_in(self._thread, partial(self._tokens.find, digest, now=now))
        caller = Caller(Method.JOIN_TOKEN, f"join-token:{digest.hex()[:16]}", token.id)
        return Attested(caller, partial(self._use_up, digest))

    async def _use_up(self, digest: bytes, now: datetime) -> None:
        await run_in(self._thread, partial(self._tokens.redeem, digest, now=now))
