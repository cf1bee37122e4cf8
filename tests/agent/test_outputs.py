"""When files are written and hooks run, and what failures do to that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from structlog.typing import EventDict

from citadel_py.agent.hooks import Outcome
from citadel_py.agent.outputs import MODES, Outputs, files_of
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import Unavailable
from citadel_py.core.keys import load_private_key, same_public_key
from citadel_py.core.pem import load_certificates
from citadel_py.core.ports import HeldSVID
from citadel_py.core.verify import verify_svid
from citadel_py.obs.metrics import AgentMetrics
from tests.store.things import NOW, WEB, new_held, new_pki


@dataclass
class Disk:
    """What is written. While `error` is set nothing is."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    error: Unavailable | None = None
    tries: int = 0

    def write(self, files: Mapping[str, bytes]) -> bool:
        self.tries += 1
        if self.error:
            raise self.error
        is_other, self.files = files != self.files, files
        return is_other


@dataclass
class FakeHook:
    """Notes what the files were when it ran; while `gate` is closed it is at work."""

    disk: Disk
    kind: str = "exec"
    outcome: Outcome = field(default_factory=Outcome)
    saw: list[bytes] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    at_work: int = 0

    async def run(self) -> Outcome:
        assert self.at_work == 0, "two at once"
        self.at_work += 1
        self.saw.append(self.disk.files["tls.crt"])
        await self.gate.wait()
        self.at_work -= 1
        return self.outcome


@dataclass
class Scene:
    disk: Disk
    hook: FakeHook
    outputs: Outputs
    metrics: AgentMetrics

    def count(self, sample: str) -> float:
        found = [line for line in self.metrics.exposition().decode().splitlines() if line.startswith(sample)]
        return float(found[0].split()[-1]) if found else 0.0


@pytest.fixture
def scene() -> Scene:
    disk, metrics = Disk(), AgentMetrics()
    hook = FakeHook(disk)
    hook.gate.set()
    outputs = Outputs(disk.write, [hook], metrics, now=lambda: NOW, uniform=lambda: 0.0)
    return Scene(disk, hook, outputs, metrics)


@asynccontextmanager
async def running(outputs: Outputs) -> AsyncIterator[None]:
    task = asyncio.create_task(outputs.run())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.001)


def crt(held: HeldSVID) -> bytes:
    return held.svid.chain_pem()


def test_the_files_are_a_chain_that_verifies_its_key_and_the_bundle() -> None:
    held = new_held(new_pki())
    files = files_of(held)
    assert files.keys() == MODES.keys()
    chain = load_certificates(files["tls.crt"])
    assert verify_svid(chain, Bundle.from_pem(WEB.trust_domain, files["ca.crt"]), now=NOW).id == WEB
    key = load_private_key(files["tls.key"])
    assert same_public_key(key.public_key(), chain[0].public_key())  # type: ignore[arg-type]
    assert MODES["tls.key"] == 0o600


async def test_each_change_is_written_and_told_after_it_is_written(scene: Scene) -> None:
    versions = [new_held(new_pki()) for _ in range(3)]
    async with running(scene.outputs):
        for number, held in enumerate(versions, 1):
            scene.outputs.replace(held)
            await until(lambda number=number: scene.count("citadel_hook_runs_total") == number)  # type: ignore[misc]
    assert scene.hook.saw == [crt(held) for held in versions]
    assert scene.count('citadel_output_writes_total{result="written"}') == 3


async def test_files_are_not_ready_until_they_are_written(scene: Scene) -> None:
    assert scene.outputs.problem
    async with running(scene.outputs):
        scene.outputs.replace(new_held(new_pki()))
        await until(lambda: scene.hook.saw)
    assert scene.outputs.problem is None


async def test_after_a_restart_the_hook_runs_although_the_files_are_right(scene: Scene) -> None:
    """Whoever wrote them may have been killed before it told anybody."""
    held = new_held(new_pki())
    scene.disk.files = files_of(held)
    async with running(scene.outputs):
        scene.outputs.replace(held)
        await until(lambda: scene.hook.saw)
        scene.outputs.replace(held)
        await until(lambda: scene.disk.tries == 2)
    assert len(scene.hook.saw) == 1
    assert scene.count('citadel_output_writes_total{result="written"}') == 0


async def test_what_changes_while_a_hook_runs_is_told_of_once_and_the_latest_alone(scene: Scene) -> None:
    first, *others = [new_held(new_pki()) for _ in range(5)]
    scene.hook.gate.clear()
    async with running(scene.outputs):
        scene.outputs.replace(first)
        await until(lambda: scene.hook.at_work)
        for held in others:
            scene.outputs.replace(held)
            await asyncio.sleep(0)
        scene.hook.gate.set()
        await until(lambda: scene.count("citadel_hook_runs_total") == 2)
    assert scene.hook.saw == [crt(first), crt(others[-1])]


async def test_a_hook_that_fails_is_told_and_runs_again_at_the_next_change(scene: Scene, log: list[EventDict]) -> None:
    scene.hook.outcome = Outcome("exit code 1", "no such unit")
    async with running(scene.outputs):
        scene.outputs.replace(new_held(new_pki()))
        await until(lambda: scene.count('citadel_hook_runs_total{hook="exec",result="failed"}') == 1)
        scene.outputs.replace(new_held(new_pki()))
        await until(lambda: scene.count('citadel_hook_runs_total{hook="exec",result="failed"}') == 2)
    told = [line for line in log if line["event"] == "hook.failed"]
    assert (told[0]["hook"], told[0]["error"], told[0]["output"]) == ("exec", "exit code 1", "no such unit")
    assert scene.outputs.problem is None


async def test_a_write_that_fails_is_told_and_tried_again_until_it_works(scene: Scene, log: list[EventDict]) -> None:
    scene.disk.error = Unavailable("cannot write out: no space left", rule="file_not_written", hint="make room")
    held = new_held(new_pki())
    async with running(scene.outputs):
        scene.outputs.replace(held)
        await until(lambda: scene.disk.tries == 1)
        await until(lambda: "no space left" in (scene.outputs.problem or ""))
        assert scene.hook.saw == []
        scene.disk.error = None
        await until(lambda: scene.hook.saw)  # after the first, shortest pause
    assert scene.hook.saw == [crt(held)]
    assert scene.outputs.problem is None
    (told,) = (line for line in log if line["event"] == "output.failed")
    assert (told["rule"], told["hints"]) == ("file_not_written", ["make room"])
    assert scene.count('citadel_output_writes_total{result="failed"}') == 1


async def test_a_failed_write_that_got_as_far_as_to_change_the_files_is_told_too(scene: Scene) -> None:
    first, second = new_held(new_pki()), new_held(new_pki())
    async with running(scene.outputs):
        scene.outputs.replace(first)
        await until(lambda: len(scene.hook.saw) == 1)
        scene.disk.error = Unavailable("cannot sync", rule="file_not_written")
        scene.outputs.replace(second)
        await until(lambda: scene.disk.tries == 2)
        scene.disk.files, scene.disk.error = files_of(second), None
        await until(lambda: len(scene.hook.saw) == 2)
    assert scene.hook.saw[1] == crt(second)


async def test_a_new_certificate_ends_the_pause_after_a_failure(scene: Scene) -> None:
    held = new_held(new_pki())
    async with running(scene.outputs):
        scene.disk.error = Unavailable("cannot write", rule="file_not_written")
        scene.outputs.replace(new_held(new_pki()))
        await until(lambda: scene.disk.tries == 1)
        await until(lambda: scene.count('citadel_output_writes_total{result="failed"}') == 1)
        scene.disk.error = None
        scene.outputs.replace(held)
        async with asyncio.timeout(0.4):  # the pause alone has half a second
            await until(lambda: scene.hook.saw)
    assert scene.hook.saw == [crt(held)]


async def test_nothing_secret_is_in_the_log(scene: Scene, log: list[EventDict]) -> None:
    held = new_held(new_pki())
    async with running(scene.outputs):
        scene.outputs.replace(held)
        await until(lambda: scene.hook.saw)
    assert files_of(held)["tls.key"].decode().splitlines()[1] not in repr(log)
