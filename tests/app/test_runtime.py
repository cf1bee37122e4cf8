from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, timedelta

import pytest
import structlog

from citadel_py.app.runtime import Supervisor, entropy, uniform, utcnow
from citadel_py.core.errors import CitadelError, NotReady


async def forever() -> None:
    await asyncio.Event().wait()


def test_the_clock_is_aware_and_utc() -> None:
    assert utcnow().tzinfo is UTC
    assert utcnow() - utcnow() < timedelta(seconds=1)


def test_draws_are_in_range_and_differ() -> None:
    draws = {uniform() for _ in range(100)}

    assert len(draws) == 100
    assert all(0 <= draw < 1 for draw in draws)
    assert len({entropy(16) for _ in range(100)}) == 100


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_requests_a_stop_and_the_process_then_ends_well(received: signal.Signals) -> None:
    async with Supervisor() as supervisor:
        supervisor.start("worker", forever())
        assert supervisor.problems() == {"worker": None, "running": None}
        os.kill(os.getpid(), received)
        async with asyncio.timeout(5):
            await supervisor.stop_requested.wait()
        assert supervisor.problems() == {"worker": None, "running": "stopping"}


async def test_a_second_signal_is_not_caught() -> None:
    async with Supervisor() as supervisor:
        os.kill(os.getpid(), signal.SIGTERM)
        await supervisor.stop_requested.wait()

        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_tasks_are_cancelled_after_the_body_has_ended() -> None:
    order: list[str] = []

    async def worker() -> None:
        try:
            await forever()
        finally:
            order.append("worker cancelled")

    async with Supervisor() as supervisor:
        supervisor.start("worker", worker())
        await asyncio.sleep(0)
        order.append("body ended")

    assert order == ["body ended", "worker cancelled"]


async def test_a_task_that_dies_takes_readiness_down_before_anything_stops_and_its_error_ends_the_service() -> None:
    other_is_running = True

    async def dying() -> None:
        raise NotReady("no authority")

    async def other() -> None:
        nonlocal other_is_running
        try:
            await forever()
        finally:
            other_is_running = False

    async def service() -> None:
        async with Supervisor() as supervisor:
            supervisor.start("other", other())
            supervisor.start("dying", dying())
            await supervisor.stop_requested.wait()
            assert supervisor.problems() == {"other": None, "dying": "it died: no authority", "running": "stopping"}
            assert other_is_running

    with structlog.testing.capture_logs() as lines, pytest.raises(NotReady, match="no authority"):
        await service()
    assert not other_is_running
    assert [(line["event"], line["task"], line["log_level"]) for line in lines] == [("task.died", "dying", "error")]


async def test_a_task_that_returns_has_died() -> None:
    async def brief() -> None:
        return

    async def service() -> None:
        async with Supervisor() as supervisor:
            supervisor.start("brief", brief())
            await supervisor.stop_requested.wait()

    with pytest.raises(CitadelError, match="the task brief ended before the service did"):
        await service()


async def test_an_error_of_the_body_cancels_the_tasks_and_is_raised() -> None:
    cancelled = asyncio.Event()

    async def worker() -> None:
        try:
            await forever()
        finally:
            cancelled.set()

    async def service() -> None:
        async with Supervisor() as supervisor:
            supervisor.start("worker", worker())
            await asyncio.sleep(0)
            raise NotReady("no authority")

    with pytest.raises(NotReady, match="no authority"):
        await service()
    assert cancelled.is_set()


async def test_signals_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with Supervisor():
        assert signal.getsignal(signal.SIGTERM) is not before

    assert signal.getsignal(signal.SIGTERM) is before
