"""The engine on an authority's directory, as the offline commands use it: decide, sign, record, hand out.

The same engine, profile, policy and ledger as the service's; only the caller is another: whoever
can read the authority's key.
"""

from __future__ import annotations

import os
import pwd
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cryptography import x509

from citadel_py.cli.inputs import naming, with_passphrase
from citadel_py.cli.render import moment_with_words
from citadel_py.cli.session import Session
from citadel_py.core import profile
from citadel_py.core.bundle import Bundle
from citadel_py.core.csr import SigningRequest
from citadel_py.core.engine import Engine
from citadel_py.core.errors import CitadelError, InvalidConfiguration, VerificationFailed
from citadel_py.core.issuer import Issuer
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.ledger_heads import Seal
from citadel_py.core.pem import MAX_PEM_BYTES, load_certificates
from citadel_py.core.policy import Caller, Method, Policy, TTLLimits, Wanted
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.svid_rules import spiffe_id_of_authority
from citadel_py.core.x509svid import X509SVID
from citadel_py.store import authority_dir
from citadel_py.store.files import read_bounded

if TYPE_CHECKING:
    from citadel_py.store.ledger import SQLLedger

WRITER = "offline"  # of the ledger: its own hash chain, apart from the service's


@dataclass(frozen=True, slots=True)
class OfflineAuthority:
    """An opened directory that can issue."""

    session: Session
    ledger: Path | str
    engine: Engine

    @classmethod
    def open(
        cls,
        session: Session,
        directory: Path,
        passphrase_file: str | None,
        *,
        now: datetime,
        ledger: str | None = None,
    ) -> Self:
        """Load the keys and prove that they work; `ledger` in place of the directory's own. Raises CitadelError."""
        held = with_passphrase(session, passphrase_file, lambda given: authority_dir.load(directory, passphrase=given))
        return cls.of_set(session, held, ledger or directory / authority_dir.LEDGER, now=now)

    @classmethod
    def of_set(cls, session: Session, held: authority_dir.AuthoritySet, ledger: Path | str, *, now: datetime) -> Self:
        """The same for keys that were loaded already. Raises CitadelError."""
        issuer = Issuer.activated(held.authority, held.intermediates, held.bundle, now=now, serial=new_serial())
        return cls(session, ledger, Engine(issuer, Policy(held.trust_domain), os.urandom))

    @property
    def bundle(self) -> Bundle:
        return self.engine.issuer.bundle

    def seal(self) -> Seal:
        """What signs the ledger's chains."""
        issuer = self.engine.issuer
        return Seal.of(issuer.authority, (*issuer.intermediates, *issuer.bundle.authorities))

    def issue(self, request: SigningRequest, wanted: Wanted, *, now: datetime) -> X509SVID:
        """A certificate that is in the ledger. Raises CitadelError; then there is neither."""
        caller = Caller(Method.OFFLINE, whoever_runs_this())
        issuance = self.engine.prepare(request, caller, wanted, now=now, request_id=uuid.uuid4().hex)
        with self.opened_ledger(now=now) as ledger:
            self.record(ledger, [issuance.entry])
        return issuance.svid

    def opened_ledger(self, *, now: datetime) -> SQLLedger:
        """The ledger, to be closed by who asked for it. Raises LedgerUnavailable."""
        from citadel_py.store.ledger import SQLLedger

        return SQLLedger.open(self.ledger, writer=WRITER, now=lambda: now, seal=self.seal)

    def record(self, ledger: SQLLedger, entries: Sequence[LedgerEntry]) -> None:
        """Make entries durable, and sign the end of their chain. Raises CitadelError where they are not recorded."""
        ledger.append(entries)
        self._sign(ledger)

    def _sign(self, ledger: SQLLedger) -> None:
        """The certificate is recorded: what is wrong with the chain before it is told, and keeps nobody from it."""
        try:
            ledger.sign(self.seal())
        except CitadelError as error:
            self.session.warn(f"the end of the ledger's chain was not signed: {error.message} [rule {error.rule}]")
            for hint in error.hints:
                self.session.hint(hint)


def note_if_shortened(session: Session, svid: X509SVID, ttl: timedelta | None, *, now: datetime) -> None:
    """Say so where a certificate lives shorter than was asked, because an authority above it ends."""
    end = (now + TTLLimits().choose(ttl)).replace(microsecond=0)
    if svid.not_after < end:
        session.note(f"it ends with its authority, {moment_with_words(svid.not_after, now)}")


def read_bundle(directory: Path) -> Bundle:
    """The bundle of an authority's directory, without opening a key. Raises BadInput."""
    if not (directory / authority_dir.BUNDLE_JSON).exists():
        raise InvalidConfiguration(
            f"no authority in {directory}",
            rule="authority_missing",
            hint=f"make one: citadel-py init --dir {directory} --trust-domain NAME",
        )
    path = directory / authority_dir.INTERMEDIATE / authority_dir.CERTIFICATE
    with naming(str(path)):
        signing = load_certificates(read_bounded(path, MAX_PEM_BYTES))[0]
        trust_domain = _trust_domain_of(signing)
    return Bundle.from_jwks(trust_domain, read_bounded(directory / authority_dir.BUNDLE_JSON, MAX_PEM_BYTES))


def new_serial() -> int:
    """A random serial number."""
    return profile.serial_number(os.urandom(profile.SERIAL_BYTES))


def whoever_runs_this() -> str:
    """`offline:<user>@<host>`, by the process's own user id: the environment could say anything."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = f"uid-{os.getuid()}"
    return f"{Method.OFFLINE}:{user}@{os.uname().nodename}".encode("ascii", "backslashreplace").decode()


def _trust_domain_of(authority: x509.Certificate) -> TrustDomain:
    try:
        authority_id = spiffe_id_of_authority(authority, "the authority")
    except VerificationFailed as error:
        raise InvalidConfiguration(error.message, rule=error.rule) from error
    if authority_id is None:
        raise InvalidConfiguration("the authority names no trust domain", rule="trust_domain_mismatch")
    return authority_id.trust_domain
