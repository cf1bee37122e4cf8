"""`envoy bootstrap`: options become the bootstrap that envoy_bootstrap.py makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from citadel_py.agent.envoy_bootstrap import certificate_file, client_bootstrap, server_bootstrap, trust_file
from citadel_py.agent.envoy_proxy import ClientProxy, Peers, RemoteAgent, ServerProxy
from citadel_py.config import Address
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from tests.cli.support import cli

TD = "example.org"
WEB, SHOP = "spiffe://example.org/web", "spiffe://example.org/shop"
SERVER = ("envoy", "bootstrap", "--server", "--sds", "unix:/run/x.sock")
CLIENT = ("envoy", "bootstrap", "--client", "--sds", "unix:/run/x.sock")
SOCKET = Path("/run/x.sock")


def test_a_server_admits_a_trust_domain() -> None:
    expected = ServerProxy(node="server", sds=SOCKET, listen=Address("", 8443), admitted=TrustDomain(TD))
    outcome = cli(*SERVER, "--trust-domain", TD)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.json == server_bootstrap(expected)


def test_a_server_admits_peers_and_hands_them_on() -> None:
    outcome = cli(
        *SERVER, "--peer", WEB, "--peer", SHOP, "--id", WEB, "--listen", "127.0.0.1:0", "--application", "127.0.0.1:80",
        "--bundle", "ALL", "--admin-port", "0", "--node", "web-1", "--delta", "--max-connection-duration", "1m",
    )  # fmt: skip
    contexts = outcome.json["static_resources"]["listeners"][0]["filter_chains"][0]["transport_socket"]["typed_config"]
    common = contexts["common_tls_context"]
    (certificate,) = common["tls_certificate_sds_secret_configs"]
    combined = common["combined_validation_context"]
    assert certificate["name"] == WEB
    assert certificate["sds_config"]["api_config_source"]["api_type"] == "DELTA_GRPC"
    assert combined["validation_context_sds_secret_config"]["name"] == "ALL"
    guard = combined["default_validation_context"]["match_typed_subject_alt_names"]
    assert [each["matcher"] for each in guard] == [{"exact": WEB}, {"exact": SHOP}]
    assert outcome.json["node"]["id"] == "web-1"
    assert '"max_connection_duration": "60s"' in outcome.out


def test_a_server_admits_its_own_trust_domain_unless_told_otherwise() -> None:
    assert cli(*SERVER, "--id", WEB).json == cli(*SERVER, "--id", WEB, "--trust-domain", TD).json


def test_a_client_speaks_with_one_peer() -> None:
    expected = ClientProxy(
        node="client", sds=SOCKET, listen=Address("127.0.0.1", 9000), upstream=Address("web.test", 8443),
        peer=SpiffeID.parse(WEB),
    )  # fmt: skip
    outcome = cli(*CLIENT, "--peer", WEB, "--upstream", "web.test:8443")
    assert (outcome.code, outcome.json) == (0, client_bootstrap(expected))


def test_the_agent_may_name_the_peers() -> None:
    expected = ServerProxy(node="server", sds=SOCKET, listen=Address("", 8443), admitted=Peers.BY_AGENT)
    assert cli(*SERVER, "--peers-from-agent").json == server_bootstrap(expected)
    proxy = ClientProxy(
        node="client", sds=SOCKET, listen=Address("127.0.0.1", 9000), upstream=Address("web.test", 8443),
        peer=Peers.BY_AGENT,
    )  # fmt: skip
    assert cli(*CLIENT, "--peers-from-agent", "--upstream", "web.test:8443").json == client_bootstrap(proxy)


def test_the_agent_may_be_on_another_machine() -> None:
    agent = RemoteAgent(Address("agent.test", 15020), SpiffeID.parse(SHOP), Path("/etc/envoy"))
    expected = ServerProxy(node="server", sds=agent, listen=Address("", 8443), admitted=TrustDomain(TD))
    remote = ("--sds", "agent.test:15020", "--sds-id", SHOP, "--sds-credentials", "/etc/envoy")
    assert cli(*SERVER, "--trust-domain", TD, *remote).json == server_bootstrap(expected)
    assert cli("envoy", "credentials", "certificate", "/run/tls").json == certificate_file(Path("/run/tls"))
    assert cli("envoy", "credentials", "trust", "/run/tls").json == trust_file(Path("/run/tls"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("envoy", "bootstrap", "--sds", "unix:x"), "one of --server and --client"),
        (SERVER, "who may connect"),
        ((*SERVER, "--trust-domain", TD, "--peer", WEB), "exclude each other"),
        ((*SERVER, "--trust-domain", TD, "--upstream", "x:1"), "--upstream has no meaning"),
        ((*SERVER, "--trust-domain", TD, "--max-connection-duration", "0s"), "outlive"),
        ((*SERVER, "--trust-domain", TD, "--peers-from-agent"), "exclude each other"),
        ((*SERVER, "--trust-domain", TD, "--sds-id", WEB), "for an agent at HOST:PORT"),
        ((*SERVER, "--trust-domain", TD, "--sds", "agent.test:1"), "needs --sds-id and --sds-credentials"),
        (("envoy", "credentials", "trust", "relative"), "the whole path"),
        (CLIENT, "exactly one --peer"),
        ((*CLIENT, "--peer", WEB), "--upstream"),
        ((*CLIENT, "--peer", WEB, "--peer", SHOP, "--upstream", "x:1"), "exactly one --peer"),
        ((*CLIENT, "--peer", WEB, "--upstream", "x:1", "--trust-domain", TD), "--trust-domain has no meaning"),
    ],
)
def test_what_makes_no_bootstrap_is_wrong_usage(arguments: tuple[str, ...], words: str) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.raw) == (2, b"")
    assert words in outcome.err


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("--sds", "/run/x.sock"), "socket_address"),
        (("--sds", "unix:@abstract"), "abstract_socket"),
        (("--admin-port", "65536"), "invalid_port"),
        (("--listen", "web.test:8443"), "listen_address"),
        (("--listen", "8443"), "invalid_address"),
    ],
)
def test_values_that_no_envoy_can_use_are_refused(arguments: tuple[str, ...], rule: str) -> None:
    outcome = cli(*SERVER, "--trust-domain", TD, *arguments)
    assert (outcome.code, outcome.rule, outcome.raw) == (3, rule, b"")
