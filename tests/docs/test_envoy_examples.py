"""The Envoy configurations in deploy/ are those that the program makes, and each has the guard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from citadel_py.agent.envoy_bootstrap import Json, client_bootstrap, server_bootstrap, to_json
from citadel_py.agent.envoy_proxy import ClientProxy, ServerProxy
from citadel_py.config import Address
from citadel_py.core.spiffe import SpiffeID, TrustDomain

EXAMPLES = Path(__file__).parents[2] / "deploy" / "envoy"

SERVER = ServerProxy(
    node="web",
    sds=Path("/run/citadel-py-agent/sds.sock"),
    listen=Address("0.0.0.0", 8443),  # noqa: S104 - what a server is for
    admitted=TrustDomain("example.org"),
    application=Address("127.0.0.1", 8080),
)
CLIENT = ClientProxy(
    node="shop",
    sds=Path("/run/citadel-py-agent/sds.sock"),
    listen=Address("127.0.0.1", 9000),
    upstream=Address("web.example.org", 8443),
    peer=SpiffeID.parse("spiffe://example.org/ns/shop/sa/web"),
)
MADE = {"server.json": server_bootstrap(SERVER), "client.json": client_bootstrap(CLIENT)}


@pytest.mark.parametrize("name", MADE)
def test_an_example_is_what_the_program_makes(name: str) -> None:
    assert (EXAMPLES / name).read_text() == to_json(MADE[name])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.name)
def test_an_example_never_trusts_what_sds_says_alone(path: Path) -> None:
    contexts = list(tls_contexts(json.loads(path.read_text())))

    assert contexts
    for context in contexts:
        combined = context["combined_validation_context"]
        assert combined["default_validation_context"]["match_typed_subject_alt_names"]
        assert "validation_context_sds_secret_config" not in context


def tls_contexts(value: object) -> list[Json]:
    """Every `common_tls_context` in a configuration."""
    found: list[Json] = []
    if isinstance(value, dict):
        for name, inner in value.items():
            found += [inner] if name == "common_tls_context" else tls_contexts(inner)
    if isinstance(value, list):
        for inner in value:
            found += tls_contexts(inner)
    return found
