"""`serve` with its ledger on PostgreSQL: it issues, stops issuing without the server, and goes on by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from citadel_py.app import serve as serve_module
from citadel_py.core.join_token import new_token
from citadel_py.core.ledger_heads import authority_keys
from citadel_py.core.ports import JoinToken
from citadel_py.store import authority_dir
from citadel_py.store.ledger import SQLLedger
from tests.app.serve_support import ID, serving, settings_of, write_authority
from tests.store.postgres_server import ABSENT, PostgresServer, find_binaries


@pytest.fixture(autouse=True)
def _logging_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "configure", lambda *_: None)


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(ABSENT)
    server = PostgresServer(binaries)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def join_tokens(url: str, count: int) -> list[str]:
    made = [new_token(os.urandom(32)) for _ in range(count)]
    with SQLLedger.open(url, writer="offline") as ledger:
        for _, digest in made:
            ledger.add(JoinToken(digest, ID, datetime.now(UTC) + timedelta(minutes=10)))
    return [text for text, _ in made]


async def test_without_the_server_nothing_is_issued_and_afterwards_it_goes_on(
    tmp_path: Path, server: PostgresServer
) -> None:
    directory, url = tmp_path / "D", server.url()
    write_authority(directory)
    async with serving(settings_of(directory, ledger=url)) as service:
        first, second = join_tokens(url, 2)
        one = service.verified(await service.ask(first))
        server.kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.ask(second)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        server.start()
        two = service.verified(await service.ask(second))
    with SQLLedger.open(url, writer="test") as ledger:
        assert {one.serial, two.serial} < {entry.serial for entry in ledger.entries()}
        chains = ledger.verify(authority_keys(authority_dir.certificates(directory)))
    assert list(chains) == [f"serve@{os.uname().nodename}"]
    assert not (directory / "ledger.db").exists()
