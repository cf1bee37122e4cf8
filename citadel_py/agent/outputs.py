"""An SVID as files for programs that read files: written on each change, then the hooks that tell of it.

Nothing that fails here stops a renewal. A writing that fails is tried again; a hook that fails is told,
and runs again at the next change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

from citadel_py.agent.hooks import Hook
from citadel_py.core.errors import CitadelError
from citadel_py.core.keys import private_key_pem
from citadel_py.core.ports import HeldSVID, Now, Uniform
from citadel_py.core.renewal import Backoff
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import AgentMetrics

# The files and their modes.
MODES: Final[Mapping[str, int]] = {"tls.crt": 0o644, "tls.key": 0o600, "ca.crt": 0o644}

_BACKOFF: Final = Backoff()

_log = get_logger()


class Outputs:
    """`replace` the SVID whenever there is another, on the event loop, and `run` until cancelled.

    `write` makes all files at once, in a thread; it tells whether anything changed, and raises
    CitadelError where it cannot. Hooks run one after the other, after each change and once at the
    start: a process that was killed may have written files that nobody was told of. What comes
    while they run is taken up afterwards, the latest alone.
    """

    def __init__(
        self,
        write: Callable[[Mapping[str, bytes]], bool],
        hooks: Sequence[Hook],
        metrics: AgentMetrics,
        *,
        now: Now,
        uniform: Uniform,
    ) -> None:
        self._write = write
        self._hooks = hooks
        self._metrics = metrics
        self._now = now
        self._uniform = uniform
        self._latest: HeldSVID | None = None
        self._changed = asyncio.Event()
        self._problem: str | None = "they are not written yet"

    @property
    def problem(self) -> str | None:
        """What is wrong with the files, in words; None where they are those of the latest SVID."""
        return self._problem

    def replace(self, held: HeldSVID) -> None:
        """Have these be the files."""
        self._latest = held
        self._changed.set()

    async def run(self) -> None:
        """Write and tell, until cancelled."""
        is_told = False
        while True:
            await self._changed.wait()
            if await self._write_latest() or not is_told:
                await self._run_hooks()
                is_told = True

    async def _write_latest(self) -> bool:
        """Write, however often it takes; whether the files are others than before."""
        failures = 0
        while True:
            self._changed.clear()
            held = self._latest
            if held is None:
                raise RuntimeError("nothing was handed over")
            try:
                is_other = await _whole(self._write, files_of(held))
            except CitadelError as error:
                failures += 1
                await self._pause(self._failed(held, error, failures))
            else:
                is_other = is_other or failures > 0  # a failed try may have got as far as to change them
                self._written(held, is_other=is_other)
                return is_other

    def _written(self, held: HeldSVID, *, is_other: bool) -> None:
        self._problem = None
        if is_other:
            self._metrics.output_writes.labels("written").inc()
            _log.info(events.OUTPUT_WRITTEN, spiffe_id=str(held.svid.id), serial=held.svid.serial)

    def _failed(self, held: HeldSVID, error: CitadelError, failures: int) -> timedelta:
        """How long to wait before the next try."""
        now = self._now()
        retry_at = _BACKOFF.retry_at(now, failures, held.svid.not_after, self._uniform())
        self._problem = f"they are not those of the latest certificate: {error.message}"
        self._metrics.output_writes.labels("failed").inc()
        _log.error(
            events.OUTPUT_FAILED,
            serial=held.svid.serial,
            error=error.message,
            rule=error.rule,
            hints=list(error.hints),
            failures=failures,
            retry_at=retry_at.isoformat(timespec="seconds"),
        )
        return retry_at - now

    async def _pause(self, longest: timedelta) -> None:
        """Another SVID ends it early."""
        with suppress(TimeoutError):
            async with asyncio.timeout(longest.total_seconds()):
                await self._changed.wait()

    async def _run_hooks(self) -> None:
        for hook in self._hooks:
            outcome = await hook.run()
            self._metrics.hook_runs.labels(hook.kind, "failed" if outcome.error else "ok").inc()
            if outcome.error:
                _log.error(events.HOOK_FAILED, hook=hook.kind, error=outcome.error, output=outcome.output)
            else:
                _log.info(events.HOOK_FINISHED, hook=hook.kind, output=outcome.output)


def files_of(held: HeldSVID) -> Mapping[str, bytes]:
    """Leaf and intermediates, key, and bundle, as PEM under the names of MODES."""
    return {
        "tls.crt": held.svid.chain_pem(),
        "tls.key": private_key_pem(held.key),
        "ca.crt": held.bundle.to_pem(),
    }


async def _whole(write: Callable[[Mapping[str, bytes]], bool], files: Mapping[str, bytes]) -> bool:
    """In a thread, to its end: whoever cancels this may take the directory away afterwards."""
    writing = asyncio.ensure_future(asyncio.to_thread(write, files))
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        raise
