"""Certificates from the engine in this process: one machine, one command, no service.

It is the same engine, profile, policy and ledger as the service's. The authority's files are looked
at for each certificate, and their last usable state is what signs.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from citadel_py.app.authority import AuthorityFiles
from citadel_py.app.ledger_heads import LedgerHeads
from citadel_py.core.csr import parse_csr_pem
from citadel_py.core.engine import Engine, Issuance
from citadel_py.core.errors import CitadelError
from citadel_py.core.ledger_heads import Seal
from citadel_py.core.policy import Caller, Method, Wanted
from citadel_py.core.ports import HeldSVID, SignedReply
from citadel_py.core.spiffe import SpiffeID
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.store import authority_dir
from citadel_py.store.ledger import SQLLedger

WRITER = "agent"  # of the ledger: a chain of its own, which agents on this machine share

_log = get_logger()


class LocalSource:
    """core.ports.CertificateSource. `open_ledger` is called when the first certificate is recorded."""

    def __init__(self, files: AuthorityFiles, open_ledger: Callable[[], SQLLedger]) -> None:
        self._files = files
        self._open_ledger = open_ledger
        self._ledger: SQLLedger | None = None
        self._engine: Engine | None = None
        self._heads = LedgerHeads(lambda: self._engine or self._current_engine())
        self._fingerprint = ""
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    def of_directory(cls, files: AuthorityFiles) -> LocalSource:
        """On the ledger that belongs to the authority."""
        source = cls(files, lambda: SQLLedger.open(ledger_path(files.directory), writer=WRITER, seal=source.seal))
        return source

    def seal(self) -> Seal:
        """What signs the ledger's chain now."""
        return self._heads.seal()

    async def sign(self, csr_pem: bytes, *, id: SpiffeID, ttl: timedelta | None, held: HeldSVID | None) -> SignedReply:  # noqa: ARG002 - whoever can read the authority's key needs nobody to vouch
        """See core.ports.CertificateSource."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._sign, csr_pem, id, ttl)

    async def check(self) -> None:
        """Raise CitadelError where there is no authority that can sign."""
        async with self._one_at_a_time:
            await asyncio.to_thread(self._current_engine)

    async def is_current(self, held: HeldSVID) -> bool:
        """False where the directory holds another bundle: another authority was made there since."""
        try:
            async with self._one_at_a_time:
                engine = await asyncio.to_thread(self._current_engine)
        except CitadelError:
            return True  # it cannot be told, and what is held is valid
        return engine.issuer.bundle.content_hash == held.bundle.content_hash

    async def aclose(self) -> None:
        """Let go of the ledger; one that is being written to is waited for."""
        async with self._one_at_a_time:
            if self._ledger is not None:
                self._ledger.close()

    def _sign(self, csr_pem: bytes, id: SpiffeID, ttl: timedelta | None) -> SignedReply:
        engine = self._current_engine()
        issuance = self._prepare(engine, csr_pem, id, ttl)
        if self._ledger is None:
            self._ledger = self._open_ledger()
        self._ledger.append([issuance.entry])
        self._heads.sign_own(self._ledger)
        _log.info(
            events.SVID_ISSUED, spiffe_id=str(id), serial=issuance.svid.serial, request_id=issuance.entry.request_id
        )
        return SignedReply(issuance.svid, engine.issuer.bundle)

    def _prepare(self, engine: Engine, csr_pem: bytes, id: SpiffeID, ttl: timedelta | None) -> Issuance:
        request = parse_csr_pem(csr_pem, engine.csr_policy)
        caller = Caller(Method.OFFLINE, f"agent:{id}")
        return engine.prepare(request, caller, Wanted(id, ttl=ttl), now=self._files.now(), request_id=uuid.uuid4().hex)

    def _current_engine(self) -> Engine:
        """What the files say, or the last that was usable. Raises CitadelError where there never was one."""
        try:
            fingerprint = self._files.fingerprint()
            if self._engine is None or fingerprint != self._fingerprint:
                self._engine, self._fingerprint = self._files.engine(), fingerprint
        except CitadelError as error:
            if self._engine is None:
                raise
            _log.error(events.AUTHORITY_REJECTED, error=str(error), rule=error.rule, hints=list(error.hints))
        return self._engine


def ledger_path(directory: Path) -> Path:
    """The ledger of the authority in this directory."""
    return directory / authority_dir.LEDGER
