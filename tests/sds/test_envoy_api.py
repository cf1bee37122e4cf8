"""Our part of Envoy's API against Envoy's own descriptors, which live in an environment of their own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse, DiscoveryResponse
from citadel_py.core.bundle import Bundle
from citadel_py.core.context_options import ContextOptions
from citadel_py.core.secrets import CertificateSecret, TrustSecret
from citadel_py.sds.encoding import (
    encode_delta_response,
    encode_response,
    encode_secret,
    with_delta_nonce,
    with_nonce,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SCRIPT = HERE / "describe_api.py"

Described = dict[str, Any]


@pytest.fixture(scope="module")
def peer() -> Path:
    """A Python that has the package xds-protos."""
    python = Path(os.environ.get("CITADEL_TEST_XDS_PYTHON") or ROOT / ".cache" / "xds-protos" / "bin" / "python")
    if not python.exists():
        pytest.skip("no xds-protos: scripts/test sets it up, or CITADEL_TEST_XDS_PYTHON names a Python that has it")
    return python


def run(python: Path | str, *arguments: str, stdin: bytes = b"") -> Described:
    # The other interpreter sees none of our modules.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python == sys.executable:
        environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([python, SCRIPT, *arguments], input=stdin, capture_output=True, check=True, env=environment)
    described: Described = json.loads(done.stdout)
    return described


@pytest.fixture(scope="module")
def theirs(peer: Path) -> Described:
    return run(peer)


@pytest.fixture(scope="module")
def ours() -> Described:
    return run(sys.executable, "citadel_py._proto")


def test_every_field_enum_and_method_of_ours_is_envoys(ours: Described, theirs: Described) -> None:
    assert len(ours) > 40
    assert {name: theirs.get(name) for name in ours} == ours


def test_a_response_of_ours_is_read_by_envoys_own_messages(peer: Path, make_bundle: Callable[[str], Bundle]) -> None:
    bundle = make_bundle("td.test")
    own = encode_secret(CertificateSecret("default", b"chain", b"key"))
    trust = encode_secret(TrustSecret("ALL", (bundle,), ContextOptions(use_spiffe_validator=True)))
    serialized = with_nonce(encode_response("v1", [own, trust]), "n1")
    read = run(peer, "--read", DiscoveryResponse.DESCRIPTOR.full_name, stdin=serialized)
    certificate, context = read["resources"]
    assert (read["version_info"], read["nonce"]) == ("v1", "n1")
    assert base64.b64decode(certificate["tls_certificate"]["private_key"]["inline_bytes"]) == b"key"
    (domain,) = context["validation_context"]["custom_validator_config"]["typed_config"]["trust_domains"]
    assert domain["name"] == "td.test"
    assert base64.b64decode(domain["trust_bundle"]["inline_bytes"]) == bundle.to_pem()


def test_an_incremental_response_of_ours_is_read_by_envoys_own_messages(peer: Path) -> None:
    own = encode_secret(CertificateSecret("default", b"chain", b"key"))
    serialized = with_delta_nonce(encode_delta_response("v1", [own], ["gone"]), "n1")
    read = run(peer, "--read", DeltaDiscoveryResponse.DESCRIPTOR.full_name, stdin=serialized)
    (resource,) = read["resources"]
    assert (read["system_version_info"], read["nonce"], read["removed_resources"]) == ("v1", "n1", ["gone"])
    assert (resource["name"], resource["version"]) == ("default", own.version)
    key = resource["resource"]["tls_certificate"]["private_key"]["inline_bytes"]
    assert base64.b64decode(key) == b"key"
