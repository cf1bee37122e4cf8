"""Certificates from the engine in this process."""

from __future__ import annotations

import shutil
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from citadel_py.app.authority import AuthorityFiles
from citadel_py.app.local_source import LocalSource
from citadel_py.core.csr import CsrPolicy, create_csr
from citadel_py.core.errors import CitadelError, InvalidConfiguration, LedgerUnavailable, PermissionDenied
from citadel_py.core.keys import KeyType, generate_key
from citadel_py.core.policy import TTLLimits
from citadel_py.core.ports import SignedReply
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.verify import verify_svid
from citadel_py.store.ledger import SQLLedger
from tests.app.serve_support import write_authority

WEB = SpiffeID.parse("spiffe://example.org/web")


def now() -> datetime:
    return datetime.now(UTC)


def files_of(directory: Path, passphrase: bytes | None = None) -> AuthorityFiles:
    return AuthorityFiles(directory, passphrase, TTLLimits(), CsrPolicy(), relax_names=False, now=now)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_authority(tmp_path / "ca")
    return tmp_path / "ca"


@pytest.fixture
async def source(directory: Path) -> AsyncIterator[LocalSource]:
    source = LocalSource.of_directory(files_of(directory))
    yield source
    await source.aclose()


async def sign(source: LocalSource, id: SpiffeID = WEB, ttl: timedelta | None = None) -> SignedReply:
    return await source.sign(create_csr(generate_key(KeyType.P256), id), id=id, ttl=ttl, held=None)


async def test_a_reply_verifies_against_its_bundle_and_is_in_the_ledger(source: LocalSource, directory: Path) -> None:
    reply = await sign(source)
    assert verify_svid(reply.svid.chain, reply.bundle, now=now(), expected=WEB).serial == reply.svid.serial
    with SQLLedger.open(directory / "ledger.db", writer="offline") as ledger:
        assert [entry.serial for entry in ledger.entries()] == [reply.svid.serial]


async def test_an_identity_of_another_trust_domain_is_refused_and_not_recorded(
    source: LocalSource, directory: Path
) -> None:
    with pytest.raises(PermissionDenied):
        await sign(source, SpiffeID.parse("spiffe://other.test/web"))
    assert not (directory / "ledger.db").exists()


async def test_what_cannot_be_recorded_is_not_issued(directory: Path) -> None:
    def fail() -> SQLLedger:
        raise LedgerUnavailable("no ledger")

    source = LocalSource(files_of(directory), fail)
    with pytest.raises(LedgerUnavailable):
        await sign(source)
    await source.aclose()


async def test_a_new_authority_signs_from_the_next_certificate_on(source: LocalSource, directory: Path) -> None:
    before = await sign(source)
    write_authority(directory, force=True)
    after = await sign(source)
    assert before.svid.authority_id != after.svid.authority_id
    assert before.bundle.content_hash != after.bundle.content_hash


async def test_an_authority_that_breaks_goes_on_as_it_was_and_is_reported(source: LocalSource, directory: Path) -> None:
    before = await sign(source)
    (directory / "intermediate" / "tls.key").write_bytes(b"nonsense")
    with structlog.testing.capture_logs() as log:
        after = await sign(source)
    assert after.svid.authority_id == before.svid.authority_id
    assert [line["event"] for line in log] == ["authority.rejected", "svid.issued"]


async def test_an_authority_that_never_worked_is_an_error(tmp_path: Path) -> None:
    source = LocalSource.of_directory(files_of(tmp_path / "nothing"))
    with pytest.raises(InvalidConfiguration):
        await source.check()
    with pytest.raises(InvalidConfiguration):
        await sign(source)
    write_authority(tmp_path / "nothing")
    await source.check()
    await source.aclose()


async def test_an_encrypted_authority_needs_its_passphrase(tmp_path: Path) -> None:
    write_authority(tmp_path / "ca", passphrase=b"open sesame")
    with pytest.raises(CitadelError):
        await LocalSource.of_directory(files_of(tmp_path / "ca")).check()
    source = LocalSource.of_directory(files_of(tmp_path / "ca", b"open sesame"))
    assert (await sign(source)).svid.id == WEB
    await source.aclose()


async def test_the_ledger_that_it_makes_is_for_its_user_only(source: LocalSource, directory: Path) -> None:
    await sign(source)
    assert stat.S_IMODE((directory / "ledger.db").stat().st_mode) == 0o600


async def test_the_check_makes_no_ledger(source: LocalSource, directory: Path) -> None:
    await source.check()
    assert not (directory / "ledger.db").exists()
    shutil.rmtree(directory)
    await source.check()  # the last usable state still signs
