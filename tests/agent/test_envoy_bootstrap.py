"""The bootstraps as values. What real Envoys make of them is in tests/envoy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from citadel_py.agent.envoy_bootstrap import (
    Json,
    certificate_file,
    client_bootstrap,
    server_bootstrap,
    to_json,
    trust_file,
)
from citadel_py.agent.envoy_proxy import NOBODY, ClientProxy, Peers, RemoteAgent, ServerProxy
from citadel_py.config import Address
from citadel_py.core.errors import InvalidConfiguration
from citadel_py.core.spiffe import SpiffeID, TrustDomain

TD = TrustDomain("example.org")
SERVER = SpiffeID(TD, "/server")
SOCKET = Path("/run/citadel-py/sds.sock")
ANYWHERE = Address("", 8443)


def server(**changes: Any) -> ServerProxy:
    settings: dict[str, Any] = {"node": "n", "sds": SOCKET, "listen": ANYWHERE, "admitted": TD, **changes}
    return ServerProxy(**settings)


def client(**changes: Any) -> ClientProxy:
    settings: dict[str, Any] = {"node": "n", "sds": SOCKET, "listen": Address("127.0.0.1", 8080), "peer": SERVER}
    return ClientProxy(**{**settings, "upstream": Address("192.0.2.1", 8443), **changes})


BOTH = pytest.mark.parametrize(
    "bootstrap",
    [server_bootstrap(server(application=Address("127.0.0.1", 80))), client_bootstrap(client())],
    ids=["server", "client"],
)


def every(key: str, value: object) -> Iterator[Any]:
    """Whatever stands under this key, at any depth."""
    if isinstance(value, dict):
        yield from [value[key]] if key in value else []
        for each in value.values():
            yield from every(key, each)
    elif isinstance(value, list):
        for each in value:
            yield from every(key, each)


def only(key: str, value: object) -> Any:
    (found,) = every(key, value)
    return found


def cluster(bootstrap: Json, name: str) -> Json:
    (found,) = (each for each in bootstrap["static_resources"]["clusters"] if each["name"] == name)
    return dict(found)


@BOTH
def test_trust_from_sds_stands_beside_a_static_matcher_of_names(bootstrap: Json) -> None:
    for context in every("common_tls_context", bootstrap):
        assert "validation_context_sds_secret_config" not in context
        combined = context["combined_validation_context"]
        assert combined["validation_context_sds_secret_config"]["name"] == "ROOTCA"
        (matcher,) = combined["default_validation_context"]["match_typed_subject_alt_names"]
        assert matcher["san_type"] == "URI"


@BOTH
def test_all_secrets_come_from_one_equal_source(bootstrap: Json) -> None:
    first, *others = every("sds_config", bootstrap)
    assert others == [first]


@BOTH
def test_the_admin_interface_is_on_loopback(bootstrap: Json) -> None:
    assert bootstrap["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"


@BOTH
def test_a_lost_agent_is_noticed_and_asked_again_within_seconds(bootstrap: Json) -> None:
    assert only("connection_keepalive", cluster(bootstrap, "sds")) == {"interval": "10s", "timeout": "5s"}
    for retry in every("retry_back_off", bootstrap):
        assert retry == {"base_interval": "0.5s", "max_interval": "5s"}


@BOTH
def test_the_node_goes_with_the_first_request_only(bootstrap: Json) -> None:
    assert set(every("set_node_on_first_message_only", bootstrap)) == {True}


@BOTH
def test_the_text_is_json_of_the_same(bootstrap: Json) -> None:
    assert json.loads(to_json(bootstrap)) == bootstrap
    assert to_json(bootstrap).endswith("}\n")


def test_sides_resume_no_sessions() -> None:
    tls = only("transport_socket", server_bootstrap(server()))["typed_config"]
    assert tls["disable_stateless_session_resumption"] is tls["disable_stateful_session_resumption"] is True
    assert only("max_session_keys", client_bootstrap(client())) == 0


def test_a_server_demands_a_certificate() -> None:
    assert only("require_client_certificate", server_bootstrap(server())) is True


def test_a_trust_domain_is_matched_up_to_its_slash() -> None:
    assert only("matcher", server_bootstrap(server())) == {"prefix": "spiffe://example.org/"}


def test_ids_are_matched_whole() -> None:
    admitted = (SpiffeID(TD, "/a"), SpiffeID(TD, "/b"))
    matchers = list(every("matcher", server_bootstrap(server(admitted=admitted))))
    assert matchers == [{"exact": "spiffe://example.org/a"}, {"exact": "spiffe://example.org/b"}]


def test_a_client_matches_its_peer_alone_and_speaks_tls_1_3() -> None:
    bootstrap = client_bootstrap(client())
    assert only("matcher", bootstrap) == {"exact": "spiffe://example.org/server"}
    assert only("tls_maximum_protocol_version", bootstrap) == "TLSv1_3"


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(minutes=10), "600s"),
        (timedelta(milliseconds=1500), "1.5s"),
        (timedelta(days=30), "2592000s"),
    ],
)
def test_connections_have_an_age(duration: timedelta, text: str) -> None:
    for bootstrap in (
        server_bootstrap(server(max_connection_duration=duration)),
        client_bootstrap(client(max_connection_duration=duration)),
    ):
        assert only("max_connection_duration", bootstrap) == text


def test_requests_per_connection_are_unbounded_unless_told() -> None:
    assert list(every("max_requests_per_connection", client_bootstrap(client()))) == []
    assert only("max_requests_per_connection", client_bootstrap(client(max_requests_per_connection=1))) == 1


def test_headers_from_the_other_side_under_our_names_are_replaced() -> None:
    bootstrap = server_bootstrap(server(response_headers={"x-peer": "%DOWNSTREAM_PEER_URI_SAN%"}))
    (added,) = only("response_headers_to_add", bootstrap)
    assert added["header"] == {"key": "x-peer", "value": "%DOWNSTREAM_PEER_URI_SAN%"}
    assert added["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"


def test_without_a_host_it_listens_on_every_address_of_both_families() -> None:
    (listener,) = server_bootstrap(server())["static_resources"]["listeners"]
    assert listener["address"]["socket_address"] == {"address": "::", "port_value": 8443, "ipv4_compat": True}


@pytest.mark.parametrize(("host", "discovery"), [("2001:db8::1", "STATIC"), ("server.example.org", "STRICT_DNS")])
def test_an_upstream_may_be_an_address_or_a_name(host: str, discovery: str) -> None:
    upstream = cluster(client_bootstrap(client(upstream=Address(host, 8443))), "upstream")
    assert upstream["type"] == discovery
    assert only("socket_address", upstream) == {"address": host, "port_value": 8443}


def test_a_socket_path_may_have_107_bytes() -> None:
    longest = Path("/" + "é" * 53)
    assert only("pipe", server_bootstrap(server(sds=longest))) == {"path": str(longest)}
    assert refusal(sds=Path(f"{longest}x")) == "socket_path_too_long"


def test_an_abstract_socket_is_refused() -> None:
    assert refusal(sds=Path("@citadel")) == "abstract_socket"


def test_envoy_listens_on_addresses_only() -> None:
    assert refusal(listen=Address("localhost", 8443)) == "listen_address"


def test_a_server_that_admits_nobody_is_refused() -> None:
    # An empty list of matchers would be no guard.
    assert refusal(admitted=()) == "nobody_admitted"


@pytest.mark.parametrize("listen", [ANYWHERE, Address("0.0.0.0", 80), Address("192.0.2.1", 80)])  # noqa: S104 - refused
def test_plain_requests_are_taken_on_loopback_only(listen: Address) -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        client(listen=listen)
    assert refused.value.rule == "plain_listener_exposed"


def refusal(**changes: Any) -> str:
    with pytest.raises(InvalidConfiguration) as refused:
        server(**changes)
    assert refused.value.hints or refused.value.rule == "nobody_admitted"
    return refused.value.rule


REMOTE = RemoteAgent(Address("agent.example.org", 15020), SpiffeID(TD, "/agent"), Path("/etc/envoy/sds"))


def test_an_agent_on_another_machine_is_asked_by_mtls_and_only_if_it_is_the_one_that_was_named() -> None:
    sds = server_bootstrap(server(sds=REMOTE))["static_resources"]["clusters"][0]
    common = sds["transport_socket"]["typed_config"]["common_tls_context"]
    guard = common["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"]
    assert guard == [{"san_type": "URI", "matcher": {"exact": str(REMOTE.id)}}]
    assert only("tls_certificate_sds_secret_configs", common)[0]["sds_config"]["path_config_source"] == {
        "path": "/etc/envoy/sds/sds-certificate.json"
    }
    assert sds["transport_socket"]["typed_config"]["max_session_keys"] == 0
    assert sds["type"] == "STRICT_DNS"


@pytest.mark.parametrize("address", [Address("", 15020), Address("agent.example.org", 0)])
def test_an_agent_that_is_nowhere_is_refused(address: Address) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        RemoteAgent(address, REMOTE.id, REMOTE.credentials)
    assert caught.value.rule == "invalid_address"


def test_envoy_is_told_to_watch_the_directory_in_which_files_are_replaced() -> None:
    (certificate,) = certificate_file(Path("/run/tls"))["resources"]
    (trust,) = trust_file(Path("/run/tls"))["resources"]
    for secret in (certificate["tls_certificate"], trust["validation_context"]):
        assert secret["watched_directory"] == {"path": "/run/tls"}
    assert certificate["tls_certificate"]["private_key"] == {"filename": "/run/tls/tls.key"}
    assert trust["validation_context"]["trusted_ca"] == {"filename": "/run/tls/ca.crt"}


@pytest.mark.parametrize(
    "bootstrap",
    [
        lambda: server_bootstrap(server(admitted=Peers.BY_AGENT)),
        lambda: client_bootstrap(client(peer=Peers.BY_AGENT)),
    ],
    ids=["server", "client"],
)
def test_a_proxy_that_leaves_its_peers_to_the_agent_has_a_guard_that_admits_nobody(
    bootstrap: Callable[[], Json],
) -> None:
    """Lists of matchers add up, so any other guard would admit more than the agent says."""
    assert only("match_typed_subject_alt_names", bootstrap()) == [{"san_type": "URI", "matcher": {"exact": NOBODY}}]
