"""A server that hangs: whoever waits for it can be broken off, and works again when it answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from citadel_py.core.errors import LedgerUnavailable
from citadel_py.store.ledger import SQLLedger
from citadel_py.store.search import Search
from tests.store.postgres_server import PostgresServer
from tests.store.things import NOW, entry


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[SQLLedger]:
    with SQLLedger.open(postgres_url, writer="one", busy_timeout=timedelta(seconds=1)) as opened:
        opened.append([entry(1)])
        yield opened


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


def broken_off(ledger: SQLLedger, work: Callable[[], object]) -> LedgerUnavailable:
    """What the work raises in a thread that is broken off while it waits."""
    raised: list[LedgerUnavailable] = []

    def run() -> None:
        with pytest.raises(LedgerUnavailable) as caught:
            work()
        raised.append(caught.value)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        ledger.interrupt()
        thread.join(0.01)
    return raised[0]


WORKS: dict[str, Callable[[SQLLedger], object]] = {
    "a commit": lambda ledger: ledger.append([entry(2)]),
    "a look for a token": lambda ledger: ledger.find(bytes(32), now=NOW),
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_who_waits_for_a_frozen_server_can_be_broken_off(
    ledger: SQLLedger, postgres_server: PostgresServer, work: Callable[[SQLLedger], object]
) -> None:
    with frozen(postgres_server):
        assert broken_off(ledger, lambda: work(ledger)).rule == "ledger_unreachable"
    ledger.append([entry(3)])
    assert ledger.verify()["one"].position >= 2  # whether the server made the other one durable nobody knows


def test_connections_that_are_closed_are_not_kept(ledger: SQLLedger) -> None:
    for number in range(2, 5):
        ledger.close()
        ledger.append([entry(number)])
        ledger.newest(Search(), limit=1)
    ledger.interrupt()  # of the one that is open and idle
    with pytest.raises(LedgerUnavailable):
        ledger.append([entry(9)])
    ledger.append([entry(9)])
