"""Word to the service manager: sd_notify(3) datagrams, where $NOTIFY_SOCKET says that somebody listens.

Nothing here is needed for the service to work, and nothing of it can make the service fail.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Self

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # not for children: their word would count as ours


class Notifier:
    """Sends to `address` (a path, or `@name` for an abstract socket); without one every method does nothing.

    `watchdog` is how long the manager waits for a sign of life before it starts the service anew.
    """

    def __init__(self, address: str | None, watchdog: timedelta | None = None) -> None:
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self.watchdog = watchdog

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As sd_notify(3) and sd_watchdog_enabled(3) have it; a watchdog of another process is none."""
        usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
        is_ours = usec.isascii() and usec.isdigit() and int(usec) > 0 and pid == str(os.getpid())
        return cls(environment.get("NOTIFY_SOCKET"), timedelta(microseconds=int(usec)) if is_ours else None)

    def ready(self, status: str | None = None) -> None:
        """The service has started, or has loaded its files again."""
        self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def reloading(self) -> None:
        """The service looks at its files; `ready` is to follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, text: str) -> None:
        """One line for people."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The service begins to end."""
        self._send("STOPPING=1")

    async def run(self, is_well: Callable[[], bool] = lambda: True) -> None:
        """Signs of life, twice as often as needed, until cancelled: while the loop turns and `is_well`."""
        if self.watchdog is None:
            await asyncio.Event().wait()
            return
        while True:
            if is_well():
                self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog.total_seconds() / 2)

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto("\n".join(lines).encode(), self._address)
