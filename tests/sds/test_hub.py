"""The current secrets: snapshots, waking, responses that are encoded once."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable

import pytest

from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse, DiscoveryResponse
from citadel_py.core.secrets import CertificateSecret
from citadel_py.sds.delta import DeltaPush
from citadel_py.sds.hub import MAX_SHARED, Hub
from citadel_py.sds.stream import Push

CertificateMaker = Callable[[str], CertificateSecret]


def push_of(hub: Hub, nonce: str = "1") -> Push:
    resource = hub.snapshot["default"]
    return Push(nonce, resource.version, (resource,))


def test_a_replaced_secret_is_in_the_next_snapshot_and_not_in_an_earlier_one(
    hub: Hub, certificate: CertificateMaker
) -> None:
    hub.replace([certificate("one")])
    before = hub.snapshot
    hub.replace([certificate("two")])
    assert before["default"].version == certificate("one").version
    assert hub.snapshot["default"].version == certificate("two").version


def test_other_names_stay_as_they_are(hub: Hub, certificate: CertificateMaker) -> None:
    hub.replace([certificate("one"), CertificateSecret("other", b"chain", b"key")])
    other = hub.snapshot["other"]
    hub.replace([certificate("two")])
    assert hub.snapshot["other"] is other


def test_a_change_wakes_every_listener(hub: Hub, certificate: CertificateMaker) -> None:
    with hub.listen() as first, hub.listen() as second:
        hub.replace([certificate("one")])
        assert first.is_set()
        assert second.is_set()


def test_equal_content_wakes_nobody(hub: Hub, certificate: CertificateMaker) -> None:
    hub.replace([certificate("one")])
    with hub.listen() as event:
        hub.replace([certificate("one")])
        assert not event.is_set()


def test_a_listener_that_left_is_not_kept(hub: Hub, certificate: CertificateMaker) -> None:
    with hub.listen() as event:
        pass
    hub.replace([certificate("one")])
    assert not event.is_set()


def test_closing_wakes_every_listener(hub: Hub) -> None:
    with hub.listen() as event:
        hub.close()
        assert hub.is_closed
        assert event.is_set()


def test_a_response_is_encoded_once_for_all_streams(
    hub: Hub, certificate: CertificateMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.replace([certificate("one")])
    first = hub.response(push_of(hub, "1"))
    monkeypatch.setattr("citadel_py.sds.hub.encode_response", None)
    assert len(hub.response(push_of(hub, "2"))) == len(first)


def test_responses_with_secrets_that_were_replaced_are_not_kept(hub: Hub, certificate: CertificateMaker) -> None:
    """They hold private keys."""
    hub.replace([certificate("one")])
    old = push_of(hub)
    hub.response(old)
    hub.replace([certificate("two")])
    hub.response(old)
    hub.response(push_of(hub))
    assert b"one" not in repr(vars(hub)).encode()


def test_a_withdrawn_name_is_gone_and_wakes_every_listener(hub: Hub, certificate: CertificateMaker) -> None:
    hub.replace([certificate("one"), CertificateSecret("other", b"chain", b"key")])
    hub.response(push_of(hub))
    with hub.listen() as event:
        hub.withdraw(["default"])
        assert event.is_set()
    assert set(hub.snapshot) == {"other"}
    assert b"one" not in repr(vars(hub)).encode()


def test_withdrawing_what_is_not_there_wakes_nobody(hub: Hub, certificate: CertificateMaker) -> None:
    hub.replace([certificate("one")])
    with hub.listen() as event:
        hub.withdraw(["nobody"])
        assert not event.is_set()


def test_an_incremental_response_is_encoded_once_and_apart_from_the_other_form(
    hub: Hub, certificate: CertificateMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.replace([certificate("one")])
    resources = (hub.snapshot["default"],)
    whole, first = hub.response(push_of(hub)), hub.response(DeltaPush("1", resources))
    assert DiscoveryResponse.FromString(whole).resources[0] == resources[0].packed
    assert DeltaDiscoveryResponse.FromString(first).resources[0].resource == resources[0].packed
    monkeypatch.setattr("citadel_py.sds.hub.encode_delta_response", None)
    assert DeltaDiscoveryResponse.FromString(hub.response(DeltaPush("2", resources))).nonce == "2"


def test_what_is_kept_does_not_grow_with_the_orders_in_which_clients_ask(hub: Hub) -> None:
    hub.replace([CertificateSecret(f"name-{number}", b"chain", b"key") for number in range(6)])
    orders = list(itertools.permutations(hub.snapshot.values()))
    assert len(orders) > 2 * MAX_SHARED
    for order in orders[:MAX_SHARED]:
        hub.response(DeltaPush("1", order))
    tracemalloc.start()
    for order in orders[MAX_SHARED:]:
        hub.response(DeltaPush("1", order))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 100_000
