"""Has the ends of the ledger's chains signed while a service runs, so that nobody can write them anew.

Signing is apart from issuing: where it fails it is told, and tried again, and certificates go on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from citadel_py.core.engine import Engine
from citadel_py.core.errors import CitadelError
from citadel_py.core.keys import PublicKey
from citadel_py.core.ledger_heads import Seal, SignedHead
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.store.ledger import SQLLedger

SIGN_EVERY = timedelta(minutes=1)

_log = get_logger()


class LedgerHeads:
    """Signs with the authority of the engine of now; remembers the public keys of those before it."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine
        self._known: dict[str, PublicKey] = {}
        self._all_signed_by: str | None = None
        self._told: dict[str, SignedHead] = {}
        self.signed_at = math.nan  # when all was signed last, in Unix seconds

    def seal(self) -> Seal:
        """What signs now."""
        issuer = self._engine().issuer
        seal = Seal.of(issuer.authority, (*issuer.intermediates, *issuer.bundle.authorities))
        self._known = {**self._known, **seal.keys}
        return Seal(seal.authority, self._known)

    async def run(self, ledger: SQLLedger) -> None:
        """Sign every SIGN_EVERY until cancelled."""
        while True:
            await self.sign(ledger)
            await asyncio.sleep(SIGN_EVERY.total_seconds())

    async def sign(self, ledger: SQLLedger) -> None:
        """Sign the own chain; under another authority than the last time every chain, while both are known."""
        signed = await asyncio.to_thread(_tried, lambda: self._sign(ledger))
        if signed is None:
            return
        self.signed_at = time.time()
        for each in signed:
            if self._told.get(each.writer) == each:
                continue  # nothing new
            self._told[each.writer] = each
            facts = {"writer": each.writer, "position": each.head.position, "hash": each.head.hash}
            _log.info(events.LEDGER_SIGNED, **facts, authority=each.authority_id)

    def sign_own(self, ledger: SQLLedger) -> None:
        """Sign the own chain, now and without a word."""
        _tried(lambda: _own(ledger, self.seal()))

    def _sign(self, ledger: SQLLedger) -> Sequence[SignedHead]:
        seal = self.seal()
        if seal.authority.id == self._all_signed_by:
            return _own(ledger, seal)
        every = ledger.sign_all(seal)
        self._all_signed_by = seal.authority.id
        return every


def _own(ledger: SQLLedger, seal: Seal) -> Sequence[SignedHead]:
    signed = ledger.sign(seal)
    return [signed] if signed else []


def _tried(sign: Callable[[], Sequence[SignedHead]]) -> Sequence[SignedHead] | None:
    """What was signed; None where that failed, which is told."""
    try:
        return sign()
    except CitadelError as error:
        _log.error(events.LEDGER_SIGNING_FAILED, error=str(error), rule=error.rule, hints=list(error.hints))
        return None
