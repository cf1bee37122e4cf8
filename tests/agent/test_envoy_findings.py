"""What is made of Envoy's documents, one finding at a time. Real Envoys are in tests/envoy."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from citadel_py.agent.envoy_admin import Admin, Json
from citadel_py.agent.envoy_bootstrap import client_bootstrap, server_bootstrap
from citadel_py.agent.envoy_findings import Findings, HeldSecret, Presented, examine
from citadel_py.agent.envoy_proxy import ClientProxy, Peers, ServerProxy
from citadel_py.config import Address
from citadel_py.core.spiffe import SpiffeID, TrustDomain

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
WEB = SpiffeID.parse("spiffe://example.org/web")
SDS = {"sds": "/run/sds.sock"}

SERVER = server_bootstrap(ServerProxy(node="s", **SDS, listen=Address("", 8443), admitted=TrustDomain("example.org")))  # type: ignore[arg-type]
CLIENT = client_bootstrap(
    ClientProxy(node="c", **SDS, listen=Address("127.0.0.1", 9000), upstream=Address("10.0.0.1", 8443), peer=WEB)  # type: ignore[arg-type]
)


def certs(begin: datetime, end: datetime) -> Json:
    leaf = {
        "serial_number": "0a1b",
        "subject_alt_names": [{"uri": str(WEB)}, {"dns": "web"}],
        "valid_from": f"{begin:%FT%TZ}",
        "expiration_time": f"{end:%FT%TZ}",
    }
    return {"certificates": [{"ca_cert": [], "cert_chain": [leaf, {}]}, {"cert_chain": [leaf]}, {"cert_chain": []}]}


def config(bootstrap: Json, active: list[Json], warming: list[Json]) -> Json:
    """A dump as Envoy makes it of a bootstrap."""
    kind = "type.googleapis.com/envoy.admin.v3."
    resources = bootstrap["static_resources"]
    listeners = [{"listener": _typed("listener.v3.Listener", each)} for each in resources["listeners"]]
    clusters = [{"cluster": _typed("cluster.v3.Cluster", each)} for each in resources["clusters"]]
    return {
        "configs": [
            {"@type": f"{kind}BootstrapConfigDump", "bootstrap": bootstrap},
            {"@type": f"{kind}ListenersConfigDump", "static_listeners": listeners},
            {"@type": f"{kind}ClustersConfigDump", "static_clusters": clusters},
            {"@type": f"{kind}SecretsConfigDump", "dynamic_active_secrets": active, "dynamic_warming_secrets": warming},
        ]
    }


def _typed(name: str, value: Json) -> Json:
    return {"@type": f"type.googleapis.com/envoy.config.{name}", **value}


def secret(name: str, **content: object) -> Json:
    return {"name": name, "version_info": "v1", "secret": {"@type": "Secret", "name": name, **content}}


OWN = secret("default", tls_certificate={"private_key": {}})
TRUST = secret("ROOTCA", validation_context={"trusted_ca": {"inline_bytes": "cGVt"}})


def admin(bootstrap: Json = SERVER, active: list[Json] | None = None, warming: list[Json] | None = None) -> Admin:
    """An Envoy with which nothing is wrong."""
    return Admin(
        is_ready=True,
        certs=certs(NOW - timedelta(minutes=10), NOW + timedelta(minutes=50)),
        config=config(bootstrap, [OWN, TRUST] if active is None else active, warming or []),
        stats={"sds.default.update_rejected": 0, "sds.default.control_plane.connected_state": 1},
        texts={"sds.default.version_text": "v2"},
    )


def rules(findings: Findings) -> list[str]:
    return [problem.rule for problem in findings.problems]


@pytest.mark.parametrize("bootstrap", [SERVER, CLIENT])
def test_with_what_the_program_makes_itself_nothing_is_wrong(bootstrap: Json) -> None:
    assert examine(admin(bootstrap), NOW).problems == ()


def test_what_is_presented_is_what_is_on_the_wire_and_each_once() -> None:
    begin, end = NOW - timedelta(minutes=10), NOW + timedelta(minutes=50)
    assert examine(admin(), NOW).presented == (Presented((str(WEB),), "a1b", begin, end),)


def test_the_version_that_is_held_is_the_accepted_one() -> None:
    """Envoy's dump has the version of a refused secret."""
    assert examine(admin(), NOW).secrets == (
        HeldSecret("default", "certificate", "v2", True),
        HeldSecret("ROOTCA", "trust", "v1", True),
    )


@pytest.mark.parametrize(
    ("now", "rule"),
    [
        (NOW + timedelta(minutes=50), ["envoy_leaf_expired"]),
        (NOW - timedelta(minutes=11), ["envoy_leaf_not_yet_valid"]),
        (NOW + timedelta(minutes=36), ["envoy_leaf_ends_soon"]),
        (NOW + timedelta(minutes=35), []),
    ],
)
def test_a_leaf_that_ends_is_told_in_time(now: datetime, rule: list[str]) -> None:
    assert rules(examine(admin(), now)) == rule


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("sds.default.update_rejected", 2, "envoy_rejected_update"),
        ("sds.spiffe_example.org/web.update_rejected", 1, "envoy_rejected_update"),
        ("sds.default.control_plane.connected_state", 0, "envoy_sds_disconnected"),
        ("control_plane.connected_state", 0, "envoy_sds_disconnected"),
    ],
)
def test_counters_tell_of_what_went_wrong(name: str, value: int, rule: str) -> None:
    wrong = replace(admin(), stats={name: value})
    assert rules(examine(wrong, NOW)) == [rule]


def test_an_envoy_that_waits_is_not_ready_and_says_for_what() -> None:
    waiting = replace(admin(active=[TRUST], warming=[secret("default")]), is_ready=False)
    findings = examine(waiting, NOW)
    assert rules(findings) == ["envoy_not_ready", "envoy_secret_missing"]
    assert "default" in findings.problems[1].message


@pytest.mark.parametrize("name", ["default_validation_context", "match_typed_subject_alt_names"])
@pytest.mark.parametrize("bootstrap", [SERVER, CLIENT])
def test_a_context_without_the_guard_is_told(bootstrap: Json, name: str) -> None:
    findings = examine(admin(without(bootstrap, name)), NOW)
    assert rules(findings) == ["envoy_without_guard"]


EMPTY = [
    secret("ROOTCA", validation_context={}),
    secret("ROOTCA"),
    secret("ROOTCA", tls_certificate={}),
    secret("ROOTCA", validation_context={"match_typed_subject_alt_names": []}),
]


@pytest.mark.parametrize("empty", EMPTY)
def test_a_context_whose_trust_is_empty_verifies_nobody(empty: Json) -> None:
    findings = examine(admin(without(SERVER, "default_validation_context"), [OWN, empty]), NOW)
    assert rules(findings) == ["envoy_without_guard", "envoy_verifies_nobody"]
    assert "listener inbound" in findings.problems[1].message


@pytest.mark.parametrize("empty", EMPTY)
def test_beside_the_guard_such_a_secret_is_refused_by_envoy_itself(empty: Json) -> None:
    assert rules(examine(admin(active=[OWN, empty]), NOW)) == []


@pytest.mark.parametrize(("bootstrap", "owner"), [(SERVER, "listener inbound"), (CLIENT, "cluster upstream")])
def test_a_context_that_verifies_with_nothing_is_told(bootstrap: Json, owner: str) -> None:
    findings = examine(admin(without(bootstrap, "combined_validation_context")), NOW)
    assert rules(findings) == ["envoy_verifies_nobody"]
    assert owner in findings.problems[0].message


def test_a_server_that_does_not_demand_a_certificate_is_told() -> None:
    findings = examine(admin(without(SERVER, "require_client_certificate")), NOW)
    assert rules(findings) == ["envoy_client_certificate_optional"]


def test_a_server_for_anybody_is_nobodys_mistake() -> None:
    """Plain TLS: it neither asks for a certificate nor has anything to verify one with."""
    plain = without(without(SERVER, "require_client_certificate"), "combined_validation_context")
    assert rules(examine(admin(plain), NOW)) == []


def test_an_envoy_without_tls_is_told() -> None:
    assert rules(examine(admin(without(SERVER, "transport_socket")), NOW)) == ["envoy_without_tls"]


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"certificates": None, "configs": 1},
        {"certificates": [1, {"cert_chain": [{"serial_number": "no"}]}, {"cert_chain": "x"}], "configs": [None, {}]},
        {"certificates": [{"cert_chain": [{"serial_number": "1", "valid_from": "x", "expiration_time": "2026"}]}]},
        {"configs": [{"@type": "SecretsConfigDump", "dynamic_active_secrets": [{"secret": 1}, 2]}]},
    ],
)
def test_shapes_that_are_not_known_are_passed_over(strange: Json) -> None:
    findings = examine(replace(admin(), certs=strange, config=strange), NOW)
    assert findings.presented == ()
    assert "envoy_without_tls" in rules(findings)


def without(value: Any, name: str) -> Any:
    """A configuration with every field of this name taken out."""
    if isinstance(value, list):
        return [without(each, name) for each in value]
    if isinstance(value, dict):
        return {each: without(inner, name) for each, inner in value.items() if each != name}
    return deepcopy(value)


NAMED = secret("ROOTCA", validation_context={"trusted_ca": {}, "match_typed_subject_alt_names": [{"san_type": "URI"}]})
BY_AGENT = server_bootstrap(ServerProxy(node="s", **SDS, listen=Address("", 8443), admitted=Peers.BY_AGENT))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bootstrap", "trust", "expected"),
    [
        (BY_AGENT, NAMED, []),
        (BY_AGENT, TRUST, ["envoy_peers_missing"]),
        (SERVER, NAMED, ["envoy_peers_add_up"]),
        (CLIENT, NAMED, ["envoy_peers_add_up"]),
    ],
    ids=["by-agent", "by-nobody", "by-both", "by-both-client"],
)
def test_peers_are_named_by_one_side(bootstrap: Json, trust: Json, expected: list[str]) -> None:
    assert rules(examine(admin(bootstrap, [OWN, trust]), NOW)) == expected
