"""All workers issue by the same files: authority, policy and revocations change in all together, or in none.

Workers prepare what the files hold and answer with a digest of it; only what all prepared alike is
activated. A worker that starts later joins when it has prepared what the others use. While files hold
something else, which the others cannot use, it stays out: better one worker less than two that differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

from citadel_py.app.worker_control import Facts, WorkerGone, error_of
from citadel_py.app.worker_slot import Slot, Stage
from citadel_py.core.errors import CitadelError, Unavailable
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.obs.metrics import WorkersMetrics

LOOK_EVERY = timedelta(seconds=1)
TRY_EVERY = timedelta(seconds=10)  # what did not work, while the files stay as they are
HOPELESS = 3  # deaths of one worker before any has served
_REJECTED = {
    "authority": events.AUTHORITY_REJECTED,
    "policy": events.POLICY_REJECTED,
    "revocations": events.TRUST_REFUSED,
}

# Of each part (authority, policy, revocations) the digest of what would be used, or why it cannot be.
Prepared: TypeAlias = Mapping[str, str | CitadelError]

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all workers prepared alike, and of the other parts why they did not."""

    digests: Mapping[str, str] = field(default_factory=dict)
    problems: Mapping[str, CitadelError] = field(default_factory=dict)


def agreement(answers: Sequence[Prepared]) -> Agreement:
    """Decide part by part: one that is bad does not hold up the other, nor does a worker that says nothing of it."""
    digests: dict[str, str] = {}
    problems: dict[str, CitadelError] = {}
    for part in dict.fromkeys(part for answer in answers for part in answer):
        found = [answer[part] for answer in answers if part in answer]
        errors = [each for each in found if isinstance(each, CitadelError)]
        same = {each for each in found if isinstance(each, str)}
        if errors:
            problems[part] = errors[0]
        elif len(same) > 1:
            problems[part] = Unavailable(f"workers read different files of the {part}", rule="worker_disagrees")
        else:
            digests[part] = same.pop()
    return Agreement(digests, problems)


class Agreements:
    """Follows the files for all workers, and lets new ones in.

    `fingerprint` changes when the files do; it is called in a thread. `joining` says that a worker waits.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        fingerprint: Callable[[], str],
        *,
        metrics: WorkersMetrics,
        joining: asyncio.Event,
    ) -> None:
        self._slots = slots
        self._fingerprint = fingerprint
        self._metrics = metrics
        self._tried = ""  # the fingerprint of the last time that all were asked
        self._seen = ""  # the last one of all
        self._tries_again_at = 0.0
        self._active: dict[str, str] = {}
        self._problems: Mapping[str, CitadelError] = {}
        self._told: dict[str, str] = {}
        self._refusal: CitadelError | None = None
        self._has_begun = False
        self._joining = joining
        self._turn = asyncio.Lock()

    @property
    def problems(self) -> Mapping[str, str | None]:
        """Of each part what is wrong with its files as they are now, while what was good before is used."""
        parts = dict.fromkeys((*self._active, *self._problems))
        return {part: str(self._problems[part]) if part in self._problems else None for part in parts}

    async def begin(self) -> None:
        """Return when the first worker serves. Raises the CitadelError for which none can."""
        while not self._at(Stage.SERVING):
            await self._sleep()
            await self.agree()
            for error in filter(None, (*self._problems.values(), self._refusal)):
                raise error
            if any(slot.deaths >= HOPELESS for slot in self._slots):
                raise Unavailable(f"workers end as soon as they begin: {self._slots[0].problem}", rule="worker_gone")
        self._has_begun = True

    async def run(self) -> None:
        """Follow the files until cancelled."""
        while True:
            await self._sleep()
            before, self._seen = self._seen, await asyncio.to_thread(self._fingerprint)
            is_settled = self._seen == before  # files of a set are often written one after the other
            if self._at(Stage.WAITING) or (is_settled and self._seen != self._tried) or self._is_to_try_again():
                await self.agree()

    async def agree(self, *, was_asked: bool = False) -> None:
        """Have all workers prepare, and use what all prepared alike. What is wrong is told once, or when asked."""
        async with self._turn:
            self._tried = await asyncio.to_thread(self._fingerprint)
            self._tries_again_at = asyncio.get_running_loop().time() + TRY_EVERY.total_seconds()
            answers = await self._prepared()
            if not answers:
                return
            found = agreement(list(answers.values()))
            if self._has_begun:  # before that they are an error of the whole
                self._tell(found, was_asked=was_asked)
            self._problems = found.problems
            if not self._at(Stage.SERVING):
                self._active = {}  # nobody is left who could differ
            await self._activate({part: each for part, each in found.digests.items() if self._active.get(part) != each})
            await self._let_in(answers)

    def _is_to_try_again(self) -> bool:
        return bool(self._problems) and asyncio.get_running_loop().time() >= self._tries_again_at

    def _at(self, stage: Stage) -> list[Slot]:
        return [slot for slot in self._slots if slot.stage is stage]

    async def _sleep(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                await self._joining.wait()
        self._joining.clear()

    async def _prepared(self) -> dict[Slot, Prepared]:
        """What each worker prepared; one that dies meanwhile is left out."""
        asked = [slot for slot in self._slots if slot.stage is not Stage.ABSENT]
        answers = await asyncio.gather(*map(_prepare, asked))
        return {slot: each for slot, each in zip(asked, answers, strict=True) if each}

    async def _activate(self, changed: Mapping[str, str]) -> None:
        """In all that serve, at once. One that does not follow is replaced."""
        if not changed:
            return
        self._active |= changed
        serving = self._at(Stage.SERVING)
        await asyncio.gather(*(self._obeyed(slot, slot.ask("activate", changed)) for slot in serving))
        for part in changed if serving else ():
            self._metrics.worker_reloads.labels(part, "activated").inc()

    async def _let_in(self, answers: Mapping[Slot, Prepared]) -> None:
        """Begin with those that wait and prepared what is used; the very first one alone, as it makes the ledger."""
        same = [slot for slot in self._at(Stage.WAITING) if answers.get(slot) == self._active]
        if same and not self._at(Stage.SERVING):
            await self._obeyed(same[0], same[0].serve(self._active))
        others = [slot for slot in same if slot.stage is Stage.WAITING]
        await asyncio.gather(*(self._obeyed(slot, slot.serve(self._active)) for slot in others))
        for slot in self._at(Stage.WAITING):
            slot.wait_for_agreement("it waits for files that it can use as the others do")

    async def _obeyed(self, slot: Slot, order: Awaitable[object]) -> None:
        """One that does not do it would differ from the others: it is replaced."""
        try:
            await order
        except WorkerGone:
            pass
        except CitadelError as error:
            self._refusal = error
            slot.give_up(f"it cannot serve: {error}")
        except TimeoutError:
            slot.give_up("it did not answer in time and was killed")

    def _tell(self, found: Agreement, *, was_asked: bool) -> None:
        for part, error in found.problems.items():
            if was_asked or self._told.get(part) != str(error):  # else the same would be told every few seconds
                self._metrics.worker_reloads.labels(part, "rejected").inc()
                _log.error(_REJECTED[part], error=str(error), rule=error.rule, hints=list(error.hints))
        self._told = {part: str(error) for part, error in found.problems.items()}


async def _prepare(slot: Slot) -> Prepared:
    try:
        return {part: _of(answer) for part, answer in (await slot.ask("prepare")).items()}
    except WorkerGone:
        return {}
    except TimeoutError:
        late = Unavailable(f"worker {slot.number} did not read the files in time", rule="worker_late")
        return dict.fromkeys(_REJECTED, late)


def _of(answer: Facts) -> str | CitadelError:
    return error_of(answer["error"]) if "error" in answer else str(answer["digest"])
