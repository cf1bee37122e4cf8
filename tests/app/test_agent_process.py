"""`citadel-py agent` as a process: killed without a warning, and what is left of it then."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.app.agent_support import WEB, RunningAgent, settings_of
from tests.app.serve_support import write_authority

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="citadel-") as path:
        write_authority(Path(path) / "ca")
        yield Path(path)


@asynccontextmanager
async def process(place: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent on the authority in `place`; killed at the end of the block."""
    command = ("agent", "--ca-dir", "ca", "--id", str(WEB), "--state", "state", "--sds", "unix:run/sds.sock")
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "citadel_py", *command, "--log-format", "json"),
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield agent
    finally:
        if agent.returncode is None:
            agent.kill()
        await agent.communicate()


async def told(agent: asyncio.subprocess.Process, event: str) -> dict[str, Any]:
    """The next line of its log with this event."""
    assert agent.stderr
    async with asyncio.timeout(30):
        while line := await agent.stderr.readline():
            facts: dict[str, Any] = json.loads(line)
            if facts["event"] == event:
                return facts
    raise AssertionError(f"it ended before it said {event}")


def client_of(place: Path) -> RunningAgent:
    """Only what a proxy does."""
    task = asyncio.get_running_loop().create_future()
    return RunningAgent(settings_of(place, ca_dir=place / "ca"), task, [], [], [], 0)  # type: ignore[arg-type]


async def test_after_kill_9_it_starts_again_with_the_certificate_that_it_had(place: Path) -> None:
    async with process(place) as agent:
        serial = (await told(agent, "svid.renewed"))["serial"]
        agent.kill()
        await agent.wait()
    assert (place / "run" / "sds.sock").exists(), "it had no chance to tidy up"
    async with process(place) as agent:
        assert (await told(agent, "svid.loaded"))["serial"] == serial
        await told(agent, "server.started")
        assert (await client_of(place).svid()).serial == serial


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_on_a_signal_it_ends_well_and_leaves_nothing_behind(place: Path, number: signal.Signals) -> None:
    async with process(place) as agent:
        await told(agent, "server.started")
        agent.send_signal(number)
        await told(agent, "process.stopped")
        assert await agent.wait() == 0
    assert list((place / "run").iterdir()) == []


async def test_a_second_process_on_the_same_state_ends_with_a_reason(place: Path) -> None:
    async with process(place) as first:
        await told(first, "server.started")
        async with process(place) as second:
            _, said = await asyncio.wait_for(second.communicate(), 30)
            assert second.returncode == 4
            assert b"locked by another process" in said
        assert (await client_of(place).svid()).id == WEB
