"""`check`: how findings are told. What is found is tested in tests/agent, and on real Envoys in tests/envoy."""

from __future__ import annotations

import json
import re
from datetime import timedelta

from citadel_py.cli.session import JSON_VERSION
from tests.agent.fake_envoy_admin import envoy_admin
from tests.cli.support import NOW, cli

LEAF = {
    "serial_number": "0a1b",
    "subject_alt_names": [{"uri": "spiffe://example.org/\x1b[2J"}],
    "valid_from": f"{NOW - timedelta(hours=1):%FT%TZ}",
    "expiration_time": f"{NOW + timedelta(hours=2):%FT%TZ}",
}
CERTS = (200, json.dumps({"certificates": [{"cert_chain": [LEAF]}]}).encode())


def test_what_is_presented_and_what_is_wrong_is_told_in_words() -> None:
    with envoy_admin(certs=CERTS) as address:
        outcome = cli("check", "--envoy", address)
    assert outcome.code == 1
    assert f"problems in Envoy at {address}" in outcome.out
    assert "serial a1b, ends 2026-03-04T07:06:07Z (in 2h)" in outcome.out
    assert re.findall(r"\[rule (\w+)\]", outcome.out) == [
        "envoy_not_ready",
        "envoy_rejected_update",
        "envoy_without_tls",
    ]
    assert outcome.err.count("hint: ") == 3


def test_what_envoy_says_cannot_drive_a_terminal() -> None:
    with envoy_admin(certs=CERTS) as address:
        assert "\x1b" not in cli("check", "--envoy", address).out


def test_for_a_program_it_is_one_document() -> None:
    with envoy_admin(certs=CERTS) as address:
        outcome = cli("check", "--envoy", address, "--json")
    assert (outcome.code, outcome.err) == (1, "")
    assert (outcome.json["version"], outcome.json["is_well"]) == (JSON_VERSION, False)
    assert outcome.json["presented"][0]["serial"] == "a1b"


def test_nobody_there_is_worth_another_try() -> None:
    with envoy_admin() as address:
        pass
    outcome = cli("check", "--envoy", address)
    assert (outcome.code, outcome.rule, outcome.raw) == (4, "envoy_unreachable", b"")


def test_something_else_there_is_a_wrong_address() -> None:
    with envoy_admin(certs=(404, b"")) as address:
        outcome = cli("check", "--envoy", address)
    assert (outcome.code, outcome.rule, outcome.raw) == (3, "not_envoy_admin", b"")
