"""The service's own certificate: names, ledger, renewal without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from cryptography import x509
from structlog.typing import EventDict

from citadel_py.ca.serving import ServerNames, ServingCertificate
from citadel_py.core.errors import BadInput, LedgerUnavailable
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.verify import verify_svid
from tests.ca.support import Clock, World, call, make_engine, until


class Setting:
    """A serving certificate whose ledger can fail."""

    def __init__(self, *names: str) -> None:
        self.clock = Clock()
        self.engine = make_engine(self.clock.now())
        self.recorded: list[LedgerEntry] = []
        self.ledger_works = True
        self.serving = ServingCertificate(
            lambda: self.engine,
            self.record,
            names=ServerNames.parse(names),
            now=self.clock.now,
            uniform=lambda: 0.5,
        )

    async def record(self, entry: LedgerEntry) -> None:
        if not self.ledger_works:
            raise LedgerUnavailable("disk full", rule="ledger_disk_full")
        self.recorded.append(entry)

    @property
    def serial(self) -> str:
        return self.serving.served.svid.serial

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.serving.renew()
        task = asyncio.create_task(self.serving.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look_around(self) -> None:
        """Let the running task find out what changed."""
        self.serving.look()
        for _ in range(10):
            await asyncio.sleep(0)


def test_names_and_addresses_are_told_apart_and_localhost_is_always_there() -> None:
    names = ServerNames.parse(["ca.example.org", "10.1.2.3", "fd00::1", "localhost"])
    assert names.dns == ("localhost", "ca.example.org")
    assert [str(address) for address in names.ips] == ["127.0.0.1", "::1", "10.1.2.3", "fd00::1"]


@pytest.mark.parametrize("name", ["", "CA.example.org", "*.example.org", "ca example", "spiffe://td/a", "10.1.2.3/8"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput):
        ServerNames.parse([name])


async def test_the_certificate_names_the_server_and_the_service() -> None:
    setting = Setting("ca.example.org", "10.1.2.3")
    await setting.serving.renew()
    svid = setting.serving.served.svid
    assert str(svid.id) == "spiffe://example.org/citadel-py/ca"
    names = svid.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "ca.example.org"]
    addresses = ["127.0.0.1", "::1", "10.1.2.3"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(each) for each in addresses]
    assert verify_svid(svid.chain, setting.engine.issuer.bundle, now=setting.clock.now()).id == svid.id


async def test_the_certificate_is_in_the_ledger_before_it_is_served() -> None:
    setting = Setting()
    setting.ledger_works = False
    with pytest.raises(LedgerUnavailable):
        await setting.serving.renew()
    with pytest.raises(RuntimeError):
        _ = setting.serving.served
    setting.ledger_works = True
    await setting.serving.renew()
    assert [(entry.serial, entry.method) for entry in setting.recorded] == [(setting.serial, "self")]


async def test_it_is_renewed_at_the_moment_that_was_drawn_and_not_before() -> None:
    setting = Setting()
    async with setting.running():
        first, renew_at = setting.serial, setting.serving.served.renew_at
        setting.clock.moment = renew_at - timedelta(seconds=1)
        await setting.look_around()
        assert setting.serial == first
        setting.clock.moment = renew_at
        await setting.look_around()
        assert setting.serial != first
        assert setting.serving.served.renew_at > renew_at


async def test_another_authority_makes_a_new_one_at_once() -> None:
    setting = Setting()
    async with setting.running():
        setting.engine = make_engine(setting.clock.now())
        await setting.look_around()
        assert setting.serving.served.svid.authority_id == setting.engine.issuer.authority.id


async def test_after_a_failure_the_last_one_is_served_and_it_is_tried_again(log: list[EventDict]) -> None:
    setting = Setting()
    async with setting.running():
        first = setting.serial
        setting.clock.moment = setting.serving.served.renew_at
        setting.ledger_works = False
        await setting.look_around()
        assert setting.serial == first
        assert [line["rule"] for line in log if line["event"] == "serving_certificate.failed"] == ["ledger_disk_full"]
        setting.ledger_works = True
        await setting.look_around()
        assert setting.serial == first  # it waits before it tries again
        setting.clock.advance(timedelta(minutes=5))
        await setting.look_around()
        assert setting.serial != first


# ------------------------------------------------------------------------------------------------ over TLS


async def served_serial(world: World) -> str:
    """The serial number that a new connection sees."""
    port = int(world.server.address.rpartition(":")[2])
    context = ssl.create_default_context(cadata=world.engine.issuer.bundle.to_pem().decode())
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return f"{x509.load_der_x509_certificate(der).serial_number:x}"


async def test_new_connections_see_a_new_certificate_and_open_ones_go_on(world: World) -> None:
    assert await served_serial(world) == world.serving.served.svid.serial
    async with world.channel() as channel, world.channel(world.mint()) as mtls_channel:
        await call(channel, token=world.issuer.token())
        await call(mtls_channel)
        before = world.serving.served.svid.serial
        await world.serving.renew()
        assert await served_serial(world) == world.serving.served.svid.serial != before
        await call(channel, token=world.issuer.token())
        await call(mtls_channel)


async def test_after_a_new_authority_clients_of_it_are_let_in(world: World) -> None:
    world.sign_with(world.successor())
    await world.serving.renew()
    reply = await world.ask(held=world.mint("/ns/shop/sa/till"))
    assert world.verified(reply).id.path == "/ns/shop/sa/till"


async def test_the_listener_is_reachable_by_each_of_its_names(world: World) -> None:
    port = int(world.server.address.rpartition(":")[2])
    context = ssl.create_default_context(cadata=world.engine.issuer.bundle.to_pem().decode())
    for name in ("localhost", "127.0.0.1", "::1"):
        _, writer = await asyncio.open_connection("localhost", port, ssl=context, server_hostname=name)
        writer.close()
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection("localhost", port, ssl=context, server_hostname="ca.example.org")


async def open_with(world: World, version: ssl.TLSVersion) -> None:
    """A connection of exactly this version of TLS."""
    context = ssl.create_default_context(cadata=world.engine.issuer.bundle.to_pem().decode())
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # or the library would not even try old versions
    context.minimum_version = context.maximum_version = version
    port = int(world.server.address.rpartition(":")[2])
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    writer.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
async def test_tls_1_2_and_1_3_are_spoken(world: World, version: ssl.TLSVersion) -> None:
    await open_with(world, version)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_older_versions_of_tls_are_not_spoken(world: World) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await open_with(world, ssl.TLSVersion.TLSv1_1)


async def test_the_timer_alone_renews(world: World) -> None:
    before = world.serving.served.svid.serial
    world.clock.moment = world.serving.served.renew_at - timedelta(milliseconds=20)
    task = asyncio.create_task(world.serving.run())
    await asyncio.sleep(0)
    world.clock.advance(timedelta(milliseconds=20))
    await until(lambda: world.serving.served.svid.serial != before)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
