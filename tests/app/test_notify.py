"""Word to the service manager, as it receives it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from citadel_py.app.notify import Notifier


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0"))
        receiver.settimeout(10)
        yield receiver


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_each_word_is_a_datagram(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@citadel-test-{os.getpid()}"
    with manager(address) as receiver:
        notifier = Notifier(address)
        notifier.ready("2 workers")
        notifier.reloading()
        notifier.status("one worker")
        notifier.stopping()
        heard = [receiver.recv(1000).decode() for _ in range(4)]
    assert heard[0] == "READY=1\nSTATUS=2 workers"
    assert heard[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert heard[2:] == ["STATUS=one worker", "STOPPING=1"]


async def test_signs_of_life_come_while_all_is_well_and_not_otherwise(tmp_path: Path) -> None:
    is_well, asked = True, 0

    def look() -> bool:
        nonlocal asked
        asked += 1
        return is_well

    with manager(str(tmp_path / "notify")) as receiver:
        receiver.setblocking(False)
        living = asyncio.create_task(Notifier(str(tmp_path / "notify"), timedelta(milliseconds=2)).run(look))
        loop = asyncio.get_running_loop()
        assert [await loop.sock_recv(receiver, 100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        is_well, asked = False, 0
        with suppress(BlockingIOError):
            while receiver.recv(100):
                pass
        while asked < 3:
            await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)
        living.cancel()


@pytest.mark.parametrize("address", [None, "", "/nowhere/notify"])
def test_without_a_manager_nothing_happens(address: str | None) -> None:
    notifier = Notifier(address)
    notifier.ready()
    notifier.stopping()


@pytest.mark.parametrize(
    ("environment", "has_watchdog"),
    [
        ({}, False),
        ({"WATCHDOG_USEC": "20000000"}, True),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "0"}, False),
        ({"WATCHDOG_USEC": "soon"}, False),
    ],
)
def test_a_watchdog_is_ours_or_none(environment: dict[str, str], *, has_watchdog: bool) -> None:
    assert (Notifier.of_environment(environment).watchdog is not None) == has_watchdog
