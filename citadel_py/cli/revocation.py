"""Revoking offline: an entry in the ledger first, then a list by every authority whose key is here."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509

from citadel_py.cli.authority import OfflineAuthority, whoever_runs_this
from citadel_py.cli.inputs import with_passphrase
from citadel_py.cli.session import Session
from citadel_py.core.crl import (
    CRL,
    Revoked,
    build_crl,
    check_crls,
    crls_pem,
    ends_at,
    is_issued_by,
    load_crls,
    number_of,
)
from citadel_py.core.errors import BadInput, InvalidConfiguration
from citadel_py.core.keys import same_public_key
from citadel_py.core.ledger import ISSUED, REVOKED, LedgerEntry
from citadel_py.core.policy import Method
from citadel_py.core.profile import Authority
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.svid_rules import describe
from citadel_py.store import authority_dir
from citadel_py.store.files import PUBLIC_FILE, exists, lock_file, write_atomic
from citadel_py.store.keys import read_key
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.search import Search

_MOST = 10_000  # certificates of one identity that are looked at


@dataclass(frozen=True, slots=True)
class Revocation:
    """An opened authority, with the root where its key is at hand."""

    authority: OfflineAuthority
    root: Authority | None
    path: Path
    now: datetime

    @classmethod
    def open(
        cls,
        session: Session,
        directory: Path,
        root_directory: Path | None,
        passphrase_file: str | None,
        *,
        now: datetime,
        ledger: str | None,
    ) -> Self:
        """Load the keys. Raises CitadelError."""
        root_key = (root_directory or directory / authority_dir.ROOT) / authority_dir.KEY
        held, key = with_passphrase(
            session,
            passphrase_file,
            lambda given: (
                authority_dir.load(directory, passphrase=given),
                read_key(root_key, passphrase=given) if root_directory or exists(root_key) else None,
            ),
        )
        place = ledger or directory / authority_dir.LEDGER
        authority = OfflineAuthority.of_set(session, held, place, now=now)
        root = Authority(authority.engine.issuer.root, key) if key else None
        if root and not same_public_key(root.key.public_key(), root.certificate.public_key()):  # type: ignore[arg-type]  # compared as bytes
            raise InvalidConfiguration(f"{root_key} is not the key of the root in use", rule="authority_key_mismatch")
        return cls(authority, root, directory / authority_dir.CRLS, now)

    def find(self, targets: Iterable[SpiffeID | str]) -> list[LedgerEntry]:
        """What is to be revoked: certificates that still live and were not revoked before.

        Raises BadInput (`revoke_unknown`, `revoke_other_authority`).
        """
        with self.authority.opened_ledger(now=self.now) as ledger:
            found = {entry.serial: entry for target in targets for entry in self._find(ledger, target)}
            revoked = {entry.serial for entry in self._revoked(ledger)}
        return [entry for serial, entry in found.items() if serial not in revoked]

    def revoke(self, entries: Sequence[LedgerEntry], *, lasts: timedelta) -> datetime:
        """Record revocations and write the lists; the moment at which the first of those ends.

        Raises CitadelError. The lists are judged first: where they could not be used nothing is recorded.
        """
        with lock_file(self.path.parent), self.authority.opened_ledger(now=self.now) as ledger:
            new = [self._revocation(entry) for entry in entries]
            crls = self._lists([*self._revoked(ledger), *new], lasts)
            if new:
                self.authority.record(ledger, new)
            write_atomic(self.path, crls_pem(crls), mode=PUBLIC_FILE)
        return ends_at(crls) or self.now

    def _find(self, ledger: SQLLedger, target: SpiffeID | str) -> list[LedgerEntry]:
        wanted = Search(serial=target) if isinstance(target, str) else Search(spiffe_id=target)
        found = [each.entry for each in ledger.newest(replace(wanted, kind=ISSUED), limit=_MOST)]
        living = [entry for entry in found if entry.not_after > self.now]
        if not living:
            raise BadInput(
                f"the ledger has no certificate of {target} that still lives",
                rule="revoke_unknown",
                hint="citadel-py ledger search --dir D",
            )
        for entry in living:
            if entry.authority_id != self.authority.engine.issuer.authority.id:
                raise BadInput(
                    f"{entry.serial} was signed by the authority {entry.authority_id}, whose key is not here",
                    rule="revoke_other_authority",
                )
        return living

    def _revoked(self, ledger: SQLLedger) -> list[LedgerEntry]:
        """What this authority has revoked."""
        issuer = self.authority.engine.issuer.authority.id
        found = (each.entry for each in ledger.by_chain(Search(kind=REVOKED)))
        return [entry for entry in found if entry.authority_id == issuer]

    def _revocation(self, entry: LedgerEntry) -> LedgerEntry:
        return replace(
            entry,
            kind=REVOKED,
            caller=whoever_runs_this(),
            method=Method.OFFLINE,
            request_id=uuid.uuid4().hex,
            time=self.now,
        )

    def _lists(self, entries: Iterable[LedgerEntry], lasts: timedelta) -> tuple[CRL, ...]:
        """New lists by the authorities whose keys are here; of the others those that there are."""
        issuer = self.authority.engine.issuer
        content = authority_dir.read_crls(self.path.parent)
        before = load_crls(content) if content else ()
        new = [self._list(issuer.authority, list(entries), before, lasts)]
        if self.root and self.root.certificate != issuer.authority.certificate:
            new.append(self._list(self.root, (), before, lasts))
        ours = [issuer.authority.certificate, *([self.root.certificate] if self.root else [])]
        kept = [crl for crl in before if not any(is_issued_by(crl, each) for each in ours)]
        authorities = dict.fromkeys((*issuer.intermediates, *issuer.bundle.authorities))
        return self._checked((*new, *kept), tuple(authorities), before)

    def _list(
        self, authority: Authority, entries: Iterable[LedgerEntry], before: Iterable[CRL], lasts: timedelta
    ) -> CRL:
        """What the list before it named stays, since a ledger from a backup may have forgotten it, until it ends."""
        earlier = [crl for crl in before if is_issued_by(crl, authority.certificate)]
        revoked = {each.serial_number: each.revocation_date_utc for crl in earlier for each in crl}
        for entry in entries:
            revoked[int(entry.serial, 16)] = entry.time
            if entry.not_after <= self.now:
                del revoked[int(entry.serial, 16)]
        number = max(int(self.now.timestamp()), *(number_of(crl) + 1 for crl in earlier), 1)
        listed = [Revoked(serial, time) for serial, time in revoked.items()]
        return build_crl(authority, listed, number=number, now=self.now, next_update=self.now + lasts)

    def _checked(
        self, crls: Sequence[CRL], authorities: Sequence[x509.Certificate], before: Iterable[CRL]
    ) -> tuple[CRL, ...]:
        check = check_crls(crls, authorities, now=self.now, before=before)
        if check.usable:
            return check.usable
        lacking = [each for each in authorities if not any(is_issued_by(crl, each) for crl in crls)]
        names = ", ".join(describe(each, "authority") for each in lacking)
        raise InvalidConfiguration(
            f"there would be no list of {names}: peers refuse everybody below it" if lacking else check.problems[0],
            rule="crl_incomplete",
            hint="--root-dir DIR names the directory that has the root's key; its list is kept from then on",
        )
