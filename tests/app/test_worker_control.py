"""The channel between supervisor and worker: questions, answers, errors, and ends."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

import citadel_py
from citadel_py.app.worker_control import MAX_LINE, Asker, Channel, Facts, WorkerGone, error_facts, error_of, obey
from citadel_py.core import errors
from citadel_py.core.errors import BadInput, CitadelError, Unavailable

SOON = timedelta(seconds=5)


async def handle(what: str, facts: Facts) -> Facts:
    match what:
        case "echo":
            return facts
        case "refuse":
            raise BadInput("no", rule="a_rule", hint=["try", "this"])
    await asyncio.Event().wait()
    return {}


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Asker, Channel]]:
    ours, theirs = socket.socketpair()
    below = await Channel.on(theirs)
    above = await Channel.on(ours)
    asker = Asker(above)
    tasks = [asyncio.create_task(asker.run()), asyncio.create_task(obey(below, handle))]
    try:
        yield asker, below
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        above.close()
        below.close()


async def test_each_question_gets_its_own_answer_though_another_is_open() -> None:
    async with pair() as (asker, _):
        hanging = asyncio.create_task(asker.ask("hang", within=SOON))
        answers = await asyncio.gather(*(asker.ask("echo", {"n": n}, within=SOON) for n in range(5)))
        assert answers == [{"n": n} for n in range(5)]
        assert not hanging.done()
        hanging.cancel()


async def test_an_error_arrives_as_itself() -> None:
    async with pair() as (asker, _):
        with pytest.raises(BadInput) as caught:
            await asker.ask("refuse", within=SOON)
    assert (caught.value.message, caught.value.rule, caught.value.hints) == ("no", "a_rule", ("try", "this"))


async def test_without_an_answer_there_is_an_end_to_the_wait() -> None:
    async with pair() as (asker, _):
        with pytest.raises(TimeoutError):
            await asker.ask("hang", within=timedelta(milliseconds=1))
        assert await asker.ask("echo", within=SOON) == {}


async def test_the_end_of_the_worker_ends_every_wait() -> None:
    async with pair() as (asker, below):
        asking = asyncio.create_task(asker.ask("hang", within=SOON))
        await asker.ask("echo", within=SOON)
        below.close()
        with pytest.raises(WorkerGone):
            await asking
        assert asker.gone.is_set()
        with pytest.raises(WorkerGone):
            await asker.ask("echo", within=SOON)


@pytest.mark.parametrize("last", [b'{"half": ', b"x" * (MAX_LINE + 1) + b"\n"])
async def test_a_line_that_is_no_line_is_the_end(last: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = await Channel.on(ours)
    with theirs:
        theirs.setblocking(False)
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(theirs, last))
        if not last.endswith(b"\n"):
            await sending
            theirs.close()
        assert await channel.receive() is None
        channel.close()
        await asyncio.gather(sending, return_exceptions=True)


def kinds() -> Iterator[type[CitadelError]]:
    """Every kind of error that a worker can have."""
    for module in pkgutil.walk_packages(citadel_py.__path__, "citadel_py."):
        if module.name.split(".")[1] in ("core", "store", "config", "ca") and "migrations" not in module.name:
            importlib.import_module(module.name)
    found = [CitadelError]
    while found:
        yield (kind := found.pop())
        found += kind.__subclasses__()


def test_every_kind_of_error_has_a_code_of_its_own_to_travel_under() -> None:
    for kind in kinds():
        error = kind("text", hint="hint")
        there = error_of(error_facts(error))
        assert (type(there), there.message, there.rule, there.hints) == (kind, "text", error.rule, ("hint",))


def test_an_error_that_is_not_known_here_is_still_one() -> None:
    facts = {**error_facts(Unavailable("text")), "code": "of_tomorrow"}
    assert type(error_of(facts)) is errors.CitadelError
