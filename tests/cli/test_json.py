"""Every `--json` answer: one document, with a version, and a shape that does not depend on the number of things."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citadel_py.config import Address
from tests.agent.fake_envoy_admin import envoy_admin
from tests.cli.support import NOW, Outcome, cli
from tests.cli.test_frame import EVERY_COMMAND

PAGE = Path(__file__).parents[2] / "docs/reference/cli.md"
WEB = "spiffe://example.org/web"


@pytest.fixture
def envoy() -> Iterator[Address]:
    """The admin address of something like an Envoy."""
    with envoy_admin() as address:
        yield address


@pytest.fixture
def answers(ca: Path, web: Path, csr: Path, tmp_path: Path, envoy: Address) -> Mapping[str, Callable[[], Outcome]]:
    return {
        "init": lambda: cli("init", "--dir", tmp_path / "new", "--trust-domain", "example.org", "--json"),
        "issue": lambda: cli("issue", WEB, "--dir", ca, "--out", tmp_path / "o", "--json"),
        "sign": lambda: cli("sign", csr, "--id", WEB, "--dir", ca, "--json"),
        "inspect": lambda: cli("inspect", web, "--json"),
        "verify": lambda: cli("verify", web / "tls.crt", "--bundle", web / "ca.crt", "--json"),
        "needs-renewal": lambda: cli("needs-renewal", web / "tls.crt", "--json"),
        "bundle show": lambda: cli("bundle", "show", "--dir", ca, "--json"),
        "ledger verify": lambda: cli("ledger", "verify", "--dir", ca, "--json"),
        "ledger search": lambda: cli("ledger", "search", "--dir", ca, "--json"),
        "ledger prune": lambda: cli("ledger", "prune", "--dir", ca, "--keep", "1d", "--dry-run", "--json"),
        "ledger revoke": lambda: cli("ledger", "revoke", "--dir", ca, "--dry-run", "--json"),
        "token create": lambda: cli("token", "create", WEB, "--dir", ca, "--json"),
        "check": lambda: cli("check", "--envoy", envoy, "--json"),
        "bench": lambda: cli("bench", "--count", "2", "--in-flight", "1", "--connections", "warm", "--json"),
        "policy check": lambda: cli("policy", "check", "-", "--json", stdin=b'trust_domain = "example.org"'),
        "policy explain": lambda: cli("policy", "explain", WEB, WEB, "--json"),
    }


WITH_JSON = [name for name, command in EVERY_COMMAND if any("--json" in param.opts for param in command.params)]


@pytest.mark.parametrize("name", WITH_JSON)
def test_the_answer_is_one_document_with_a_version(answers: Mapping[str, Callable[[], Outcome]], name: str) -> None:
    outcome = answers[name]()
    assert outcome.code in (0, 1)
    assert outcome.json["version"] == 1
    assert next(iter(outcome.json)) == "version"
    assert outcome.out.endswith("}\n")


@pytest.mark.parametrize("name", WITH_JSON)
def test_the_reference_lists_the_fields(answers: Mapping[str, Callable[[], Outcome]], name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert ["version", *re.findall(r"`(\w+)`", row)] == list(answers[name]().json)


def test_the_reference_lists_the_fields_of_a_certificate(web: Path) -> None:
    (facts,) = cli("inspect", web / "ca.crt", "--json").json["objects"]
    (text,) = re.findall(r"^An entry of `certificates`.*?Other objects", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name in facts if f"`{name}`" not in text and name not in ("source", "file_mode")] == []


def test_one_certificate_has_the_shape_of_two(web: Path) -> None:
    def pieces(path: Path) -> list[dict[str, object]]:
        found: list[dict[str, object]] = cli("inspect", path, "--json").json["objects"]
        return found

    names = [list(each) for path in (web / "ca.crt", web / "tls.crt") for each in pieces(path)]
    assert len(names) == 3
    assert all(each == names[0] for each in names)


LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789._-"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(LETTERS, min_size=1, max_size=20).filter(lambda text: text not in (".", "..")),
    dns=st.lists(st.from_regex(r"[a-z]([a-z0-9]{0,8}[a-z0-9])?", fullmatch=True), max_size=3, unique=True),
    later=st.timedeltas(timedelta(days=-2), timedelta(days=400)),
)
def test_whatever_is_issued_has_one_shape_at_every_moment(
    ca: Path, tmp_path: Path, name: str, dns: list[str], later: timedelta
) -> None:
    wanted = [flag for each in dns for flag in ("--dns", each)]
    out = tmp_path / "o"
    assert cli("issue", f"spiffe://example.org/{name}", "--dir", ca, "--out", out, "--force", *wanted).code == 0
    outcome = cli("inspect", out / "tls.crt", "--json", now=NOW + later)
    leaf, intermediate = outcome.json["objects"]
    assert list(leaf) == list(intermediate)
    assert (leaf["dns"], leaf["uris"]) == (dns, [f"spiffe://example.org/{name}"])
