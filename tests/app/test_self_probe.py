"""The service as its own client: what it takes for well, what not, and in which words."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from citadel_py.agent.ca_call import Answer
from citadel_py.app import self_probe as module
from citadel_py.app.self_probe import MISSES, PATIENCE, SelfProbe
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import LedgerUnavailable
from citadel_py.core.grants import PROBE_PATH
from citadel_py.core.issuer import Issuer
from citadel_py.core.policy_file import parse_policy
from tests.ca.support import TD, UNLIMITED, Held, World, call, make_authority, new_serial, until

EVERY = timedelta(seconds=20)


@pytest.fixture(scope="module")
def token_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
async def world(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> AsyncIterator[World]:
    async with World(tmp_path, token_key).running() as world:
        yield world


class Probed:
    """A probe of a world, with a clock that is set by hand."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seconds = 1000.0
        self.checked: list[str] = []
        self.check_failure: LedgerUnavailable | None = None
        self.probe = SelfProbe(
            lambda: world.engine,
            world.commits.record,
            self._check,
            every=EVERY,
            now=world.clock.now,
            elapsed=lambda: self.seconds,
            uniform=lambda: 0.5,
            metrics=world.metrics,
        )

    async def _check(self, serial: str) -> None:
        self.checked.append(serial)
        if self.check_failure:
            raise self.check_failure

    async def attempt(self) -> bool:
        return await self.probe.attempt(self.world.server.mtls_address)

    @property
    def problem(self) -> str:
        return self.probe.problem or ""

    @property
    def doubt(self) -> str:
        return self.probe.doubt or ""

    def recorded(self) -> list[tuple[str, str]]:
        """How its certificates came about, by serial number."""
        probe = f"spiffe://{TD}{PROBE_PATH}"
        return [(entry.method, entry.serial) for entry in self.world.ledger.entries() if entry.spiffe_id == probe]


@pytest.fixture
def probed(world: World) -> Probed:
    return Probed(world)


async def test_until_a_certificate_has_come_nothing_is_well(probed: Probed) -> None:
    assert probed.problem == "no certificate has come yet"
    assert await probed.attempt()
    assert (probed.problem, probed.doubt) == ("", "")


async def test_it_renews_what_it_was_given_and_looks_for_it_in_the_ledger(probed: Probed) -> None:
    for _ in range(3):
        assert await probed.attempt()
    assert [method for method, _ in probed.recorded()] == ["self", "mtls", "mtls", "mtls"]
    assert probed.checked == [serial for _, serial in probed.recorded()[1:]]


async def test_its_certificates_live_no_longer_than_they_have_to(probed: Probed) -> None:
    await probed.attempt()
    entry = list(probed.world.ledger.entries())[-1]
    assert entry.not_after - probed.world.clock.now() <= (MISSES + 2) * EVERY


async def test_a_failure_is_a_problem_once_none_has_come_for_a_while(probed: Probed) -> None:
    await probed.attempt()
    lock = sqlite3.connect(probed.world.ledger_path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        assert not await probed.attempt()
        assert not probed.problem
        assert probed.doubt.startswith("UNAVAILABLE: ")
        probed.seconds += (MISSES * EVERY + PATIENCE).total_seconds() + 25
        assert probed.problem.startswith("the last certificate came 1m35s ago: UNAVAILABLE: ")
        assert probed.problem.endswith("(ledger_locked)")
    finally:
        lock.close()
    assert await probed.attempt()
    assert (probed.problem, probed.doubt) == ("", "")


async def test_a_certificate_that_is_not_in_the_ledger_does_not_count(probed: Probed) -> None:
    probed.check_failure = LedgerUnavailable("it is not there", rule="probe_unrecorded")
    assert not await probed.attempt()
    assert probed.problem == "no certificate has come yet: it is not there (probe_unrecorded)"


async def test_no_policy_locks_it_out(probed: Probed) -> None:
    text = f"""trust_domain = "{TD}"
        [[rule]]
        name = "nothing for anybody"
        effect = "deny"
        who.id = "spiffe://{TD}/**"
        what.id = "spiffe://{TD}/**"
    """
    probed.world.change_policy(rules=parse_policy(text.encode(), limits=probed.world.engine.policy.limits))
    assert await probed.attempt()


async def test_it_goes_on_under_an_authority_that_does_not_know_its_certificate(probed: Probed) -> None:
    world = probed.world
    await probed.attempt()
    root, signer = make_authority(world.clock.now())
    bundle = Bundle(TD, (root.certificate,))
    world.sign_with(Issuer.activated(signer, (signer.certificate,), bundle, now=world.clock.now(), serial=new_serial()))
    await world.serving.renew()
    assert [await probed.attempt(), await probed.attempt()] == [False, True]
    assert [method for method, _ in probed.recorded()] == ["self", "mtls", "self", "mtls"]


async def test_a_listener_that_is_gone_is_told(probed: Probed) -> None:
    assert not await probed.probe.attempt("127.0.0.1:1")
    assert probed.problem.startswith("no certificate has come yet: UNAVAILABLE: ")


@pytest.mark.parametrize(("path", "rule"), [(PROBE_PATH, "probe_wrong_key"), ("/somebody", "unexpected_id")])
async def test_it_believes_nothing_of_what_comes(
    probed: Probed, monkeypatch: pytest.MonkeyPatch, path: str, rule: str
) -> None:
    foreign: Held = probed.world.mint(path)

    async def answer(*_arguments: object, **_more: object) -> Answer:
        return Answer((*(pem.decode() for pem in foreign.svid.pem_elements()), "the bundle"))

    monkeypatch.setattr(module, "create_certificate", answer)
    assert not await probed.attempt()
    assert f"({rule})" in probed.problem


async def test_a_flood_does_not_make_the_service_look_broken(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> None:
    narrow = replace(UNLIMITED, places=1, waiting=4)
    async with World(tmp_path, token_key, admission=narrow).running() as world, world.channel() as channel:
        outcomes: list[bool] = []
        refused = 0

        async def loop(token: str) -> None:
            nonlocal refused
            while len(outcomes) < 5:
                result = (await asyncio.gather(call(channel, token=token), return_exceptions=True))[0]
                refused += isinstance(result, BaseException)

        probed = Probed(world)
        clients = asyncio.gather(*(loop(world.issuer.token()) for _ in range(40)))
        await until(lambda: refused > 20)
        while len(outcomes) < 5:
            outcomes.append(await probed.attempt())
        await clients
    assert outcomes == [True] * 5


async def test_it_asks_again_and_again(probed: Probed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probed.probe, "_every", timedelta(0))
    running = asyncio.create_task(probed.probe.run(probed.world.server.mtls_address))
    await until(lambda: len(probed.checked) >= 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
