"""Group commit: one append for what is ready together, and nobody is lost or left waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from citadel_py.ca.group_commit import DOUBT, MAX_GROUP, GroupCommit
from citadel_py.ca.ledger_thread import LedgerThread
from citadel_py.core.errors import LedgerUnavailable
from citadel_py.core.ledger import LedgerEntry
from tests.ca.support import until

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class RecordingLedger:
    """Remembers each append; fails with what it is given."""

    def __init__(self) -> None:
        self.appends: list[list[str]] = []
        self.failure: Exception | None = None

    def append(self, entries: Sequence[LedgerEntry]) -> None:
        if self.failure is not None:
            raise self.failure
        self.appends.append([entry.serial for entry in entries])


def entry(serial: str) -> LedgerEntry:
    end = NOW + timedelta(hours=1)
    return LedgerEntry("issued", serial, "spiffe://td/a", "b", "jwt", "00", "11", NOW, end, "id", NOW)


@pytest.fixture
def ledger() -> RecordingLedger:
    return RecordingLedger()


async def test_what_is_ready_together_is_committed_at_once(ledger: RecordingLedger) -> None:
    commits = GroupCommit(ledger)
    await asyncio.gather(*(commits.record(entry(name)) for name in "abc"))
    await commits.record(entry("d"))
    assert ledger.appends == [["a", "b", "c"], ["d"]]


async def test_what_comes_in_one_after_the_other_without_a_pause_is_one_group(ledger: RecordingLedger) -> None:
    commits = GroupCommit(ledger)

    async def arrive(name: str, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await commits.record(entry(name))

    await asyncio.gather(*(arrive(name, 6 * place) for place, name in enumerate("abcd")))
    assert ledger.appends == [["a", "b", "c", "d"]]


async def test_a_group_that_keeps_growing_is_committed_all_the_same(ledger: RecordingLedger) -> None:
    commits = GroupCommit(ledger)
    arrivals = []
    while not ledger.appends:
        arrivals.append(asyncio.create_task(commits.record(entry("a"))))
        await asyncio.sleep(0)
    await asyncio.gather(*arrivals)
    assert len(ledger.appends[0]) == MAX_GROUP


async def test_entries_are_durable_when_record_returns(ledger: RecordingLedger) -> None:
    commits = GroupCommit(ledger)

    async def record(name: str) -> bool:
        await commits.record(entry(name))
        return any(name in group for group in ledger.appends)

    assert await asyncio.gather(*(record(name) for name in "abc")) == [True, True, True]


async def test_a_failed_commit_refuses_everybody_in_it_with_an_error_of_their_own(ledger: RecordingLedger) -> None:
    commits = GroupCommit(ledger)
    ledger.failure = LedgerUnavailable("disk full", rule="ledger_disk_full")
    errors = await asyncio.gather(*(commits.record(entry(name)) for name in "ab"), return_exceptions=True)
    assert [getattr(error, "rule", None) for error in errors] == ["ledger_disk_full"] * 2
    assert errors[0] is not errors[1]
    ledger.failure = None
    await commits.record(entry("c"))
    assert ledger.appends == [["c"]]


async def test_a_waiter_that_is_cancelled_takes_nobody_with_it_and_is_recorded(ledger: RecordingLedger) -> None:
    commits = GroupCommit(ledger)
    gone = asyncio.create_task(commits.record(entry("gone")))
    stays = asyncio.create_task(commits.record(entry("stays")))
    await asyncio.sleep(0)  # both wait now, and the commit comes next
    gone.cancel()
    await stays
    assert gone.cancelled()
    assert ledger.appends == [["gone", "stays"]]


async def test_a_waiter_that_is_cancelled_does_not_hide_a_failure(ledger: RecordingLedger) -> None:
    commits = GroupCommit(ledger)
    ledger.failure = LedgerUnavailable("locked")
    gone = asyncio.create_task(commits.record(entry("gone")))
    stays = asyncio.create_task(commits.record(entry("stays")))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(LedgerUnavailable):
        await stays


async def test_a_bug_in_the_ledger_leaves_nobody_waiting(ledger: RecordingLedger) -> None:
    commits = GroupCommit(ledger)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    ledger.failure = bug = ZeroDivisionError()
    with pytest.raises(LedgerUnavailable):
        await commits.record(entry("a"))
    assert reported == [bug]


async def test_a_failure_is_a_problem_until_a_commit_succeeds(ledger: RecordingLedger) -> None:
    commits = GroupCommit(ledger, monotonic=lambda: 1.0)
    ledger.failure = LedgerUnavailable("disk full")
    with pytest.raises(LedgerUnavailable):
        await commits.record(entry("a"))
    assert commits.problem == "disk full"
    ledger.failure = None
    await commits.record(entry("b"))
    assert commits.problem is None


async def test_a_problem_is_forgotten_after_a_while_so_that_work_comes_back(ledger: RecordingLedger) -> None:
    clock = [100.0]
    commits = GroupCommit(ledger, monotonic=lambda: clock[0])
    ledger.failure = LedgerUnavailable("disk full")
    with pytest.raises(LedgerUnavailable):
        await commits.record(entry("a"))
    clock[0] += DOUBT.total_seconds() + 1
    assert commits.problem is None


async def test_each_commit_that_succeeded_is_observed_with_its_size(ledger: RecordingLedger) -> None:
    seen: list[int] = []
    commits = GroupCommit(ledger, observe=lambda count, _seconds: seen.append(count))
    await asyncio.gather(commits.record(entry("a")), commits.record(entry("b")))
    ledger.failure = LedgerUnavailable("disk full")
    with pytest.raises(LedgerUnavailable):
        await commits.record(entry("c"))
    assert seen == [2]


# ------------------------------------------------------------------------------------------------ in a thread


class FarLedger(RecordingLedger):
    """One that takes its time: a commit ends when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.may_end = threading.Event()

    def append(self, entries: Sequence[LedgerEntry]) -> None:
        self.begun += 1
        self.may_end.wait()
        super().append(entries)


@pytest.fixture
def far() -> FarLedger:
    return FarLedger()


@pytest.fixture
def thread(far: FarLedger) -> Iterator[LedgerThread]:
    thread = LedgerThread(far.may_end.set)
    yield thread
    thread.close()


async def test_while_one_group_is_under_way_the_next_one_gathers(far: FarLedger, thread: LedgerThread) -> None:
    commits = GroupCommit(far, thread=thread)
    first = asyncio.create_task(commits.record(entry("a")))
    await until(lambda: far.begun == 1)
    others = [asyncio.create_task(commits.record(entry(name))) for name in "bcd"]
    await until(lambda: len(asyncio.all_tasks()) >= 5)
    assert not first.done()
    far.may_end.set()
    await asyncio.gather(first, *others)
    assert far.appends == [["a"], ["b", "c", "d"]]


async def test_a_failure_in_the_thread_refuses_its_group_alone(far: FarLedger, thread: LedgerThread) -> None:
    commits = GroupCommit(far, thread=thread)
    far.may_end.set()
    far.failure = LedgerUnavailable("gone", rule="ledger_unreachable")
    with pytest.raises(LedgerUnavailable):
        await commits.record(entry("a"))
    told = [commits.problem]
    far.failure = None
    await commits.record(entry("b"))
    assert far.appends == [["b"]]
    assert [*told, commits.problem] == ["gone", None]


async def test_a_waiter_that_is_cancelled_is_recorded_in_the_thread_too(far: FarLedger, thread: LedgerThread) -> None:
    commits = GroupCommit(far, thread=thread)
    gone = asyncio.create_task(commits.record(entry("gone")))
    await until(lambda: far.begun == 1)
    gone.cancel()
    far.may_end.set()
    await commits.record(entry("next"))
    assert far.appends == [["gone"], ["next"]]


async def test_a_bug_in_the_thread_leaves_nobody_waiting_and_the_next_group_goes(
    far: FarLedger, thread: LedgerThread
) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    commits = GroupCommit(far, thread=thread)
    far.may_end.set()
    far.failure = bug = ZeroDivisionError()
    with pytest.raises(LedgerUnavailable):
        await commits.record(entry("a"))
    far.failure = None
    await commits.record(entry("b"))
    assert (far.appends, reported) == ([["b"]], [bug])
