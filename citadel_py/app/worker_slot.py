"""One place among the workers: it is filled again whenever its process dies, hangs, or cannot be used.

The first replacement comes at once; where they die one after the other the wait grows, up to a bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum, auto

from citadel_py.app.runtime import uniform
from citadel_py.app.worker_control import Facts, WorkerGone
from citadel_py.app.worker_process import Beginning, WorkerProcess
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import WorkersMetrics

LOOK_EVERY = timedelta(seconds=1)  # how often a worker is asked how it is
HUNG_AFTER = timedelta(seconds=15)  # without an answer; a slow disk alone holds a worker's loop for seconds
ANSWER_WITHIN = timedelta(seconds=60)  # what takes time: to start, to read files, to open the ledger
PAGE_WITHIN = timedelta(seconds=2)
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=1), timedelta(seconds=30)
WELL_AFTER = timedelta(minutes=1)  # of serving: earlier deaths are forgotten

_log = get_logger()


class Stage(Enum):
    """How far the process of a slot is."""

    ABSENT = auto()
    WAITING = auto()  # to be told what to issue with
    SERVING = auto()


class Slot:
    """Keeps one worker running. `joining` is set when a new one waits to be told what to use."""

    def __init__(self, number: int, beginning: Beginning, *, metrics: WorkersMetrics, joining: asyncio.Event) -> None:
        self.number = number
        self.stage = Stage.ABSENT
        self._beginning = beginning
        self._metrics = metrics
        self._joining = joining
        self._process: WorkerProcess | None = None
        self._trouble: str | None = "it is starting"  # of the process as a whole
        self._checks: Mapping[str, str | None] = {}
        self._degraded: Mapping[str, str | None] = {}
        self._unusable: str | None = None  # why this process is given up
        self._deaths = 0
        self._is_stopping = False

    # --- how it is

    @property
    def is_ready(self) -> bool:
        """True while it serves and all its checks were well when it was asked last."""
        return self.stage is Stage.SERVING and self.problem is None

    @property
    def problem(self) -> str | None:
        """Why it is not ready, in words."""
        wrong = [f"{name}: {problem}" for name, problem in self._checks.items() if problem]
        return self._trouble or "; ".join(wrong) or None

    @property
    def degraded(self) -> Mapping[str, str | None]:
        """What is not as it should be while it issues."""
        return self._degraded

    @property
    def deaths(self) -> int:
        """How many of its processes ended one after the other."""
        return self._deaths

    # --- what it is told

    async def ask(self, what: str, facts: Facts | None = None, *, within: timedelta = ANSWER_WITHIN) -> Facts:
        """As Asker.ask. Raises WorkerGone where there is no process."""
        if self._process is None:
            raise WorkerGone("there is no worker")
        return await self._process.ask(what, facts, within=within)

    def wait_for_agreement(self, why: str) -> None:
        """Say why it does not serve yet."""
        self._trouble = why

    async def serve(self, digests: Mapping[str, str]) -> None:
        """Have it begin to issue with what it prepared. Raises as Asker.ask."""
        process = self._process
        await self.ask("start", digests)
        if process is not self._process:
            raise WorkerGone("the worker is gone")
        self.stage, self._trouble, self._checks = Stage.SERVING, None, {"worker": "it has not been asked yet"}
        await self._look()

    def give_up(self, why: str) -> None:
        """The process cannot be used: end it, and start another."""
        self._unusable = why
        if self._process is not None:
            self._process.kill()

    async def stop(self, grace: timedelta) -> None:
        """End the process gracefully; no other follows."""
        self._is_stopping = True
        self._trouble = "it is stopping"
        if self._process is not None:
            await self._process.end(grace)

    # --- its life

    async def run(self) -> None:
        """Keep it filled until cancelled."""
        while not self._is_stopping:
            reason = await self._one_life()
            if not self._is_stopping:
                await self._pause(reason)
        await asyncio.Event().wait()

    async def _one_life(self) -> str:
        """From the start of a process to its end; why it ended."""
        self._unusable = None
        try:
            self._process = await WorkerProcess.start(self.number, self._beginning)
        except OSError as error:
            return f"it could not be started: {error.strerror}"
        try:
            _log.info(events.WORKER_STARTED, worker=self.number, pid=self._process.pid)
            self.stage = Stage.WAITING
            self._joining.set()
            return await self._watch(self._process)
        finally:
            self.stage, self._degraded, self._checks = Stage.ABSENT, {}, {}
            process, self._process = self._process, None
            await process.end()

    async def _watch(self, process: WorkerProcess) -> str:
        began = asyncio.get_running_loop().time()
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                    await process.gone.wait()
                self.stage = Stage.ABSENT
                return self._unusable or await process.why_gone()
            except TimeoutError:
                pass
            try:
                await self._look()
            except TimeoutError:
                return "it did not answer any more and was killed"
            except WorkerGone:
                continue
            if self.stage is Stage.SERVING and asyncio.get_running_loop().time() - began > WELL_AFTER.total_seconds():
                self._deaths = 0

    async def _look(self) -> None:
        state = await self.ask("state", within=HUNG_AFTER if self.stage is Stage.SERVING else ANSWER_WITHIN)
        if self.stage is Stage.SERVING:
            self._checks, self._degraded = state["checks"], state["degraded"]

    async def _pause(self, reason: str) -> None:
        self._deaths += 1
        self._metrics.worker_restarts.inc()
        wait = wait_before(self._deaths)
        self._trouble = f"{reason}, starting again" + (f" in {wait.total_seconds():.1f}s" if wait else "")
        _log.error(events.WORKER_DIED, worker=self.number, reason=reason, restart_in_s=round(wait.total_seconds(), 3))
        await asyncio.sleep(wait.total_seconds())


def wait_before(deaths: int) -> timedelta:
    """None after the first, then 1 s, 2 s, 4 s ... 30 s, between half of that and all of it."""
    if deaths <= 1:
        return timedelta(0)
    return min(FIRST_WAIT * float(2 ** min(deaths - 2, 30)), LONGEST_WAIT) * (0.5 + uniform() / 2)
