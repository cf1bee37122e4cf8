"""The ends of the ledger's chains are signed while a service runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from citadel_py.app.authority import AuthorityFiles
from citadel_py.app.ledger_heads import LedgerHeads
from citadel_py.core.csr import CsrPolicy
from citadel_py.core.engine import Engine
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.ledger_heads import authority_keys
from citadel_py.core.policy import TTLLimits
from citadel_py.store import authority_dir
from citadel_py.store.ledger import SQLLedger
from tests.app.serve_support import write_authority


def now() -> datetime:
    return datetime.now(UTC)


def engine_of(directory: Path) -> Engine:
    write_authority(directory)
    return AuthorityFiles(directory, None, TTLLimits(), CsrPolicy(), relax_names=False, now=now).engine()


def entry(number: int) -> LedgerEntry:
    times = {"not_before": now(), "not_after": now() + timedelta(hours=1), "time": now()}
    return LedgerEntry(
        "issued", f"{number:x}", "spiffe://example.org/web", "c", "jwt", "k", "a", request_id="r", **times
    )


class World:
    """A service's engine, ledger and heads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.engine = engine_of(directory)
        self.heads = LedgerHeads(lambda: self.engine)
        self.ledger = SQLLedger.open(directory / "ledger.db", writer="serve", seal=self.heads.seal)

    async def sign(self) -> list[dict[str, object]]:
        """What is logged about it."""
        with structlog.testing.capture_logs() as log:
            await self.heads.sign(self.ledger)
        return [dict(line) for line in log]

    def signed_to(self, directory: Path | None = None) -> dict[str, int]:
        """By the authority in the directory."""
        keys = authority_keys(authority_dir.certificates(directory or self.directory))
        return {writer: chain.signed_to for writer, chain in self.ledger.verify(keys).items()}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "D")
    yield world
    world.ledger.close()


async def test_what_was_appended_is_signed_and_told_once(world: World) -> None:
    world.ledger.append([entry(1), entry(2)])
    world.ledger.append([entry(3)])
    assert world.signed_to() == {"serve": 2}
    (line,) = await world.sign()
    assert (line["event"], line["writer"], line["position"]) == ("ledger.signed", "serve", 3)
    assert line["authority"] == world.engine.issuer.authority.id
    assert world.signed_to() == {"serve": 3}
    assert await world.sign() == []


async def test_a_new_authority_signs_every_chain(world: World, tmp_path: Path) -> None:
    world.ledger.append([entry(1)])
    with SQLLedger.open(world.directory / "ledger.db", writer="offline", seal=world.heads.seal) as offline:
        offline.append([entry(2)])
    await world.sign()
    world.engine = engine_of(tmp_path / "new")
    lines = await world.sign()
    assert {line["writer"] for line in lines} == {"serve", "offline"}
    assert world.signed_to(tmp_path / "new") == {"serve": 1, "offline": 1}


async def test_a_ledger_that_is_gone_is_told_and_signed_later(world: World) -> None:
    world.ledger.append([entry(1)])
    world.ledger.append([entry(2)])
    world.ledger.close()
    path = world.directory / "ledger.db"
    path.rename(path.with_name("elsewhere"))
    (line,) = await world.sign()
    assert (line["event"], line["log_level"], line["rule"]) == ("ledger.signing_failed", "error", "ledger_missing")
    path.with_name("elsewhere").rename(path)
    assert [line["event"] for line in await world.sign()] == ["ledger.signed"]


async def test_a_chain_that_does_not_continue_what_was_signed_is_told_and_stays_unsigned(world: World) -> None:
    with SQLLedger.open(world.directory / "ledger.db", writer="serve") as without:
        without.append([entry(1)])
    (line,) = await world.sign()
    assert (line["event"], line["rule"]) == ("ledger.signing_failed", "ledger_unsigned")


async def test_it_is_known_when_all_was_signed_last(world: World) -> None:
    assert math.isnan(world.heads.signed_at)
    world.ledger.append([entry(1)])
    before = time.time()
    await world.sign()
    assert world.heads.signed_at >= before
