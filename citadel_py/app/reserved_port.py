"""A TCP port that several processes of ours listen on together, held by the one that supervises them.

The holder never listens: connections go to the workers, which bind with SO_REUSEPORT (socket(7)). Who
does not is kept out; other processes of the same user that do are looked for once, before it is held.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeAlias

from citadel_py.config import Address
from citadel_py.core.errors import Unavailable

# Workers of a supervisor that was killed close their listeners within half a second.
PATIENCE = timedelta(seconds=5)
_LOOK_EVERY = timedelta(milliseconds=50)
_TRIES_FOR_ONE_PORT = 10  # of several addresses, another of which may be taken

_Place: TypeAlias = tuple[socket.AddressFamily, str]
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # a family that this machine has not


@dataclass(frozen=True, slots=True)
class ReservedPort:
    """`address` has its port; it is ours until `close`."""

    address: Address
    sockets: Sequence[socket.socket]

    @classmethod
    async def take(cls, wanted: Address) -> Self:
        """Hold it once nobody else listens there, for which it waits a while; port 0 is one that is free.

        Raises Unavailable.
        """
        deadline = time.monotonic() + PATIENCE.total_seconds()
        while True:
            try:
                places = await _places(wanted)
                return cls(*_held(wanted, places))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise _failed(wanted, error) from error
            await asyncio.sleep(_LOOK_EVERY.total_seconds())

    def close(self) -> None:
        """Let others have it."""
        for each in self.sockets:
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


async def _places(wanted: Address) -> list[_Place]:
    """What the host stands for: `localhost` is two addresses on most machines."""
    found = await asyncio.get_running_loop().getaddrinfo(
        wanted.bind_host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _held(wanted: Address, places: Sequence[_Place]) -> tuple[Address, Sequence[socket.socket]]:
    if wanted.port != 0:
        for each in _bound(places, wanted.port, shared=False):
            each.close()
        return wanted, _bound(places, wanted.port, shared=True)
    for _ in range(_TRIES_FOR_ONE_PORT - 1):
        try:
            return _held_anywhere(wanted, places)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _held_anywhere(wanted, places)


def _held_anywhere(wanted: Address, places: Sequence[_Place]) -> tuple[Address, Sequence[socket.socket]]:
    with ExitStack() as undo:
        (first,) = _bound(places[:1], 0, shared=True)
        undo.callback(first.close)
        port = int(first.getsockname()[1])
        rest = _bound(places[1:], port, shared=True) if places[1:] else []
        undo.pop_all()
        return Address(wanted.host, port), [first, *rest]


def _bound(places: Sequence[_Place], port: int, *, shared: bool) -> list[socket.socket]:
    """One socket for each place that this machine has. Raises OSError where there is none, or one is taken."""
    with ExitStack() as undo:
        bound, absent = [], None
        for family, host in places:
            each = socket.socket(family, socket.SOCK_STREAM)
            undo.callback(each.close)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections do not count, listeners do
            if shared:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                each.bind((host, port))
                if shared:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # nor may others listen beside it
                else:
                    each.listen(1)  # this is when Linux looks at those who hold the port and do not listen
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error
            else:
                bound.append(each)
        if absent is not None and not bound:
            raise absent
        undo.pop_all()
        return bound


def _failed(wanted: Address, error: OSError) -> Unavailable:
    return Unavailable(
        f"cannot listen on {wanted}: {error.strerror}",
        rule="listen_failed",
        hint="is another process listening there?",
    )
