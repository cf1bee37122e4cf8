"""The thread of a ledger that is not local: order, patience, and an event loop that goes on turning."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest

from citadel_py.ca.ledger_thread import LedgerThread, run_in
from citadel_py.core.errors import LedgerUnavailable
from tests.ca.support import until


class SlowLedger:
    """Work that ends when the test says so, or when it is broken off."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_end = threading.Event()
        self.is_broken_off = threading.Event()

    def work(self, name: str) -> str:
        self.begun.append(name)
        while not self.may_end.wait(0.001):
            if self.is_broken_off.is_set():
                raise LedgerUnavailable("the connection is closed", rule="ledger_unreachable", hint="look at it")
        return name


@pytest.fixture
def slow() -> Iterator[SlowLedger]:
    slow = SlowLedger()
    yield slow
    slow.may_end.set()


async def test_the_loop_turns_while_the_ledger_works_and_the_order_is_kept(slow: SlowLedger) -> None:
    thread = LedgerThread(slow.is_broken_off.set)
    works = [asyncio.create_task(thread.run(partial(slow.work, name))) for name in "abc"]
    await until(lambda: slow.begun == ["a"])  # which needs a loop that turns
    slow.may_end.set()
    assert await asyncio.gather(*works) == list("abc")
    assert slow.begun == list("abc")
    thread.close()


async def test_what_takes_too_long_is_broken_off_and_says_so(slow: SlowLedger) -> None:
    thread = LedgerThread(slow.is_broken_off.set, patience=timedelta(milliseconds=1))
    with pytest.raises(LedgerUnavailable, match="no answer within 0s: the connection is closed") as caught:
        await thread.run(lambda: slow.work("a"))
    assert (caught.value.rule, caught.value.hints) == ("ledger_unreachable", ("look at it",))
    slow.may_end.set()
    assert await thread.run(lambda: slow.work("b")) == "b"
    thread.close()


async def test_other_errors_come_as_they_are(slow: SlowLedger) -> None:
    def fail() -> None:
        raise LedgerUnavailable("disk full", rule="ledger_disk_full")

    thread = LedgerThread(slow.is_broken_off.set)
    with pytest.raises(LedgerUnavailable, match=r"^disk full$"):
        await thread.run(fail)
    thread.close()


async def test_a_caller_that_goes_away_leaves_the_work_and_its_error_alone(slow: SlowLedger) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    thread = LedgerThread(slow.is_broken_off.set)
    gone = asyncio.create_task(thread.run(lambda: slow.work("gone")))
    await until(lambda: slow.begun == ["gone"])
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    slow.is_broken_off.set()
    assert await thread.run(lambda: "next") == "next"
    assert reported == []
    thread.close()


async def test_closing_breaks_off_what_is_under_way(slow: SlowLedger) -> None:
    thread = LedgerThread(slow.is_broken_off.set)
    work = asyncio.create_task(thread.run(lambda: slow.work("a")))
    await until(lambda: slow.begun == ["a"])
    thread.close()
    with pytest.raises(LedgerUnavailable):
        await work


async def test_without_a_thread_work_is_done_at_once() -> None:
    assert await run_in(None, threading.get_ident) == threading.get_ident()
