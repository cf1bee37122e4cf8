"""Channels that are kept, and refusals as our errors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import grpc
import pytest
import trustme

from citadel_py._proto.istio.v1.auth import ca_pb2
from citadel_py.agent.ca_call import Channels, Door, create_certificate, error_of, renewal_advice
from citadel_py.core.errors import BadInput, CitadelError, PermissionDenied, Unauthenticated, Unavailable
from citadel_py.obs.status import Refusal

RETRYABLE = (
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
)


@pytest.mark.parametrize("code", RETRYABLE)
def test_what_agents_try_again_is_unavailable(code: grpc.StatusCode) -> None:
    assert type(error_of(Refusal(code, "text", ""))) is Unavailable


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.INVALID_ARGUMENT, BadInput),
    ],
)
def test_what_trying_again_does_not_cure_is_told_apart(code: grpc.StatusCode, kind: type[CitadelError]) -> None:
    assert type(error_of(Refusal(code, "text", ""))) is kind


def test_the_services_reason_is_the_rule_and_its_advice_is_in_the_text() -> None:
    refusal = Refusal(
        grpc.StatusCode.UNAVAILABLE, "busy", "NOT_READY", "abc123", ("wait",), retry_after=timedelta(seconds=4.2)
    )
    error = error_of(refusal)
    assert error.rule == "not_ready"
    assert error.hints == ("wait",)
    assert error.message == "UNAVAILABLE: busy; request id abc123; it asks to wait 4.2 s"


@pytest.mark.parametrize("reason", ["", "lower", "WITH SPACE", "X" * 100, "A\nB", "1ST"])
def test_a_reason_that_is_none_is_not_believed(reason: str) -> None:
    assert error_of(Refusal(grpc.StatusCode.UNAVAILABLE, "", reason)).rule == "ca_call_failed"


def test_text_from_the_other_side_is_short_and_harmless() -> None:
    token = "citadel-join-" + "s" * 43
    refusal = Refusal(grpc.StatusCode.UNAVAILABLE, f"{token}\n\x1b[2J" + "x" * 5000, "", "r" * 5000, ("h" * 5000,))
    error = error_of(refusal)
    assert token not in error.message
    assert "\x1b" not in error.message
    assert len(error.message) < 1000
    assert len(error.hints[0]) < 500


def test_a_key_does_not_show_in_the_representation_of_a_door() -> None:
    assert "s3cret" not in repr(Door("host:1", b"roots", b"chain", b"s3cret"))


async def test_the_same_door_gives_the_same_channel_and_another_one_another() -> None:
    channels = Channels()
    door = Door("localhost:1", b"")
    first = await channels.to(door)
    assert await channels.to(Door("localhost:1", b"")) is first
    assert await channels.to(Door("localhost:2", b"")) is not first
    await channels.close()


async def test_channels_do_not_pile_up() -> None:
    channels = Channels()
    opened = [await channels.to(Door(f"localhost:{port}", b"")) for port in range(1, 40)]
    states = [channel.get_state() for channel in opened]
    assert states.count(grpc.ChannelConnectivity.SHUTDOWN) == len(opened) - 16
    assert states[-1] is not grpc.ChannelConnectivity.SHUTDOWN
    await channels.close()
    assert {channel.get_state() for channel in opened} == {grpc.ChannelConnectivity.SHUTDOWN}


@pytest.mark.parametrize(
    ("name", "trusted", "hint"),
    [("localhost", False, "is ca_bundle the bundle"), ("elsewhere.test", True, "names other")],
)
async def test_a_handshake_that_fails_says_which_setting_to_look_at(name: str, hint: str, *, trusted: bool) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert(name)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    roots = (authority if trusted else trustme.CA()).cert_pem.bytes()
    channels = Channels()
    channel = await channels.to(Door(f"localhost:{port}", roots))
    try:
        with pytest.raises(Unavailable) as caught:
            await create_certificate(
                channel,
                ca_pb2.IstioCertificateRequest(),
                token=None,
                deadline=timedelta(seconds=10),
                learn_port=lambda _: None,
            )
    finally:
        await channels.close()
        await server.stop(None)
    assert hint in caught.value.hints[0]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("2026-03-04T05:06:07Z", datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)),
        ("2026-02-30T05:06:07Z", None),
        ("2026-03-04T05:06:07", None),
        ("2026-03-04T05:06:07+00:00", None),
        ("2026-03-04", None),
        ("1772600767", None),
        ("", None),
        (b"2026-03-04T05:06:07Z", None),
    ],
)
def test_advice_that_cannot_be_read_is_none(told: str | bytes, expected: datetime | None) -> None:
    assert renewal_advice(grpc.aio.Metadata(("citadel-renew-at", told))) == expected


def test_a_service_that_gives_no_advice_is_as_good() -> None:
    assert renewal_advice(None) is renewal_advice(grpc.aio.Metadata()) is None
