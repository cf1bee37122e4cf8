"""A port that is held for several processes, and for nobody else."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta

import pytest

from citadel_py.app import reserved_port
from citadel_py.app.reserved_port import ReservedPort
from citadel_py.config import Address
from citadel_py.core.errors import Unavailable

HOST = "127.0.0.1"


def worker(port: int, host: str = HOST) -> socket.socket:
    """A listener as a worker's is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, reuse_port=True)


async def test_a_free_port_is_found_and_is_ours_alone() -> None:
    with await ReservedPort.take(Address(HOST, 0)) as held:
        port = held.address.port
        assert port
        with pytest.raises(OSError, match="in use"):
            socket.create_server((HOST, port))
        with worker(port) as one, worker(port) as other:
            socket.create_connection((HOST, port)).close()
            assert one.getsockname() == other.getsockname()
    socket.create_server((HOST, port)).close()


async def test_connections_go_to_workers_alone() -> None:
    with await ReservedPort.take(Address(HOST, 0)) as held, worker(held.address.port) as listener:
        for _ in range(20):
            with socket.create_connection((HOST, held.address.port)):
                listener.accept()[0].close()


@pytest.mark.parametrize("host", ["localhost", ""])
async def test_a_name_of_several_addresses_has_one_port_on_all(host: str) -> None:
    with await ReservedPort.take(Address(host, 0)) as held:
        assert {each.getsockname()[1] for each in held.sockets} == {held.address.port}
        for each in held.sockets:
            worker(held.address.port, each.getsockname()[0]).close()


@pytest.mark.parametrize("reuse_port", [False, True])
async def test_where_somebody_else_listens_it_is_refused(monkeypatch: pytest.MonkeyPatch, *, reuse_port: bool) -> None:
    monkeypatch.setattr(reserved_port, "PATIENCE", timedelta(milliseconds=10))
    with socket.create_server((HOST, 0), reuse_port=reuse_port) as other:
        address = Address(HOST, other.getsockname()[1])
        with pytest.raises(Unavailable, match=f"cannot listen on {address}") as caught:
            await ReservedPort.take(address)
    assert caught.value.rule == "listen_failed"


async def test_what_one_supervisor_holds_no_other_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserved_port, "PATIENCE", timedelta(milliseconds=10))
    with await ReservedPort.take(Address(HOST, 0)) as held:
        with pytest.raises(Unavailable):
            await ReservedPort.take(held.address)
        worker(held.address.port).close()


async def test_it_waits_for_listeners_that_are_about_to_end() -> None:
    with worker(0) as orphan:
        address = Address(HOST, orphan.getsockname()[1])
        taking = asyncio.create_task(ReservedPort.take(address))
        await asyncio.wait({taking}, timeout=0.1)
        assert not taking.done()
    (await taking).close()


async def test_connections_of_before_do_not_count() -> None:
    with socket.create_server((HOST, 0)) as listener:
        address = Address(HOST, listener.getsockname()[1])
        client = socket.create_connection((HOST, address.port))
        accepted, _ = listener.accept()
    accepted.close()  # its side of the connection waits in TIME_WAIT
    client.close()
    (await ReservedPort.take(address)).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(Unavailable, match="cannot listen on"):
        await ReservedPort.take(Address(host, 0))
