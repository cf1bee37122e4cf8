"""`policy check` and `policy explain`, and the policies that the documentation shows."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from citadel_py.core.policy import TTLLimits
from citadel_py.core.policy_file import parse_policy
from citadel_py.core.policy_review import review
from tests.cli.conftest import UPDATE_GOLDEN
from tests.cli.support import cli

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO, REFERENCE = DOCS / "how-to/policy.md", DOCS / "reference/policy.md"
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"(?<=^```console\n)\$ (.*?)\n.*?(?=^```$)", re.MULTILINE | re.DOTALL)

WEB = "spiffe://example.org/ns/shop/sa/web"
DB = "spiffe://example.org/ns/shop/sa/db"
ALL = 'who.id = "spiffe://example.org/**"'


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The policy of the how-to, as policy.toml of the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("policy.toml").write_text(TOML.findall(HOW_TO.read_text())[0])
    return Path("policy.toml")


def write(path: Path, *rules: str, trust_domain: str = "example.org") -> Path:
    named = "".join(f'[[rule]]\nname = "r{at}"\n{rule}\n' for at, rule in enumerate(rules, 1))
    path.write_text(f'trust_domain = "{trust_domain}"\n{named}')
    return path


# documentation


def test_the_how_to_shows_what_the_program_says(policy: Path) -> None:
    assert policy.exists()

    def run(block: re.Match[str]) -> str:
        outcome = cli(*shlex.split(block[1])[1:])
        return f"$ {block[1]}\n{outcome.out}{outcome.err}"

    page = HOW_TO.read_text()
    real = CONSOLE.sub(run, page)
    if os.environ.get(UPDATE_GOLDEN) == "1":
        HOW_TO.write_text(real)
        page = real
    assert len(CONSOLE.findall(page)) == 3
    assert page == real


@pytest.mark.parametrize("page", [HOW_TO, REFERENCE], ids=lambda page: page.parent.name)
def test_policies_of_the_documentation_are_in_order(page: Path) -> None:
    for text in TOML.findall(page.read_text()):
        assert review(parse_policy(text.encode(), limits=TTLLimits())) == ()


def test_every_key_of_a_rule_is_in_the_reference() -> None:
    page = REFERENCE.read_text()
    keys = re.findall(r"`((?:who|what|name|effect)[.\w]*)`", page)
    body = {
        "who.method": '"mtls"', "who.issuer": '"i"', "who.subject": '"s"', "who.id": '"spiffe://example.org/**"',
        "what.id": '"own"', "what.dns": '"a.org"', "what.ttl.minimum": '"1h"', "what.ttl.default": '"2h"',
        "what.ttl.maximum": '"3h"', "name": '"n"', "effect": '"allow"',
    }  # fmt: skip
    assert set(body) <= set(keys)
    text = 'trust_domain = "example.org"\n[[rule]]\n' + "\n".join(f"{key} = {value}" for key, value in body.items())
    assert len(parse_policy(text.encode(), limits=TTLLimits()).all) == 1


# check


def test_a_policy_in_order_is_a_yes(policy: Path) -> None:
    outcome = cli("policy", "check", policy)
    assert (outcome.code, outcome.err) == (0, "")
    assert cli("policy", "check", "-", stdin=policy.read_bytes()).code == 0


def test_a_rule_that_never_decides_is_a_no_and_named(tmp_path: Path) -> None:
    file = write(tmp_path / "p.toml", ALL, ALL)
    outcome = cli("policy", "check", file)
    assert (outcome.code, outcome.err) == (1, "")
    assert "rule 2 (r2) is never reached: rule 1 (r1) decides everything that it could" in outcome.out
    assert "[rule policy_unreachable_rule]" in outcome.out


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"x", "policy_syntax"),
        (b'trust_domain = "example.org"\nrul = 1', "policy_unknown_key"),
        (b'trust_domain = "example.org"\n[[rule]]\nname = "r"\nwho.id = "spiffe://*/**"', "policy_trust_domain"),
    ],
)
def test_a_file_that_serve_would_refuse_is_bad_input_with_the_name_of_the_file(
    tmp_path: Path, content: bytes, rule: str
) -> None:
    (tmp_path / "p.toml").write_bytes(content)
    outcome = cli("policy", "check", tmp_path / "p.toml")
    assert (outcome.code, outcome.rule, outcome.out) == (3, rule, "")
    assert f"error: {tmp_path / 'p.toml'}: " in outcome.err
    outcome = cli("policy", "check", tmp_path / "p.toml", "--json")
    assert (outcome.code, outcome.json["is_valid"], outcome.json["error"]["rule"]) == (3, False, rule)


def test_lifetimes_are_held_against_those_of_the_service(tmp_path: Path) -> None:
    file = write(tmp_path / "p.toml", ALL + '\nwhat.ttl.maximum = "100d"')
    assert cli("policy", "check", file).rule == "policy_ttl"
    assert cli("policy", "check", file, "--max-ttl", "100d").code == 0
    assert cli("policy", "check", file, "--max-ttl", "1h").rule == "ttl_limits_order"


def test_the_authoritys_directory_says_the_trust_domain(ca: Path, tmp_path: Path) -> None:
    assert cli("policy", "check", write(tmp_path / "p.toml"), "--dir", ca).code == 0
    other = write(tmp_path / "p.toml", trust_domain="other.org")
    assert cli("policy", "check", other, "--dir", ca).rule == "policy_trust_domain"


def test_json_answer_of_check(tmp_path: Path) -> None:
    outcome = cli("policy", "check", write(tmp_path / "p.toml", ALL, ALL), "--json")
    one, two = {"number": 1, "name": "r1"}, {"number": 2, "name": "r2"}
    message = "rule 2 (r2) is never reached: rule 1 (r1) decides everything that it could"
    assert outcome.code == 1
    assert outcome.json == {
        "version": 1,
        "is_valid": True,
        "trust_domain": "example.org",
        "rules": [one, two],
        "findings": [{"rule": "policy_unreachable_rule", "message": message, "subject": two, "by": one}],
        "error": None,
    }


# explain


def test_without_a_policy_the_default_is_explained() -> None:
    assert cli("policy", "explain", WEB, WEB).code == 0
    outcome = cli("policy", "explain", WEB, DB)
    assert outcome.code == 1
    assert "[rule identity_not_granted]" in outcome.out
    assert "it may have its own identity and nothing else" in outcome.out


def test_the_authority_refuses_what_is_not_of_its_trust_domain(ca: Path) -> None:
    foreign = "spiffe://other.org/web"
    assert "[rule foreign_trust_domain]" in cli("policy", "explain", foreign, foreign, "--dir", ca).out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), 0),
        (("--dns", "web.shop.svc", "--dns", "web.shop.svc.cluster.local"), 0),
        (("--dns", "db.shop.svc"), 1),
        (("--ttl", "12h"), 0),
        (("--ttl", "13h"), 1),
        (("--ttl", "30s"), 1),
    ],
)
def test_the_exit_code_is_the_decision(policy: Path, options: tuple[str, ...], code: int) -> None:
    assert cli("policy", "explain", WEB, WEB, "--policy", policy, *options).code == code
    assert cli("policy", "explain", WEB, WEB, "--policy", policy, *options, "--json").code == code


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), 1),
        (("--method", "jwt"), 1),
        (("--issuer", "i"), 1),
        (("--issuer", "i", "--subject", "system:serviceaccount:shop:web"), 0),
        (("--issuer", "i", "--subject", "system:serviceaccount:bank:web", "--method", "jwt"), 1),
        (("--issuer", "other", "--subject", "system:serviceaccount:shop:web"), 1),
        (("--method", "mtls", "--issuer", "i"), 2),
    ],
)
def test_a_caller_with_a_token_is_described_by_its_claims(tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    who = 'who = { issuer = "i", subject = "system:serviceaccount:shop:*" }'
    file = write(tmp_path / "p.toml", f'{who}\nwhat.id = "{DB}"')
    assert cli("policy", "explain", WEB, DB, "--policy", file, *options).code == code


def test_json_answer_of_explain(policy: Path) -> None:
    outcome = cli("policy", "explain", WEB, WEB, "--policy", policy, "--dns", "web.shop.svc", "--json")
    assert outcome.json == {
        "version": 1,
        "is_granted": True,
        "decided_by": {"number": 3, "name": "services have their names"},
        "why": "rule 3 (services have their names) grants it",
        "caller": WEB,
        "id": WEB,
        "dns": ["web.shop.svc"],
        "ttl_seconds": 3600,
        "error": None,
        "tried": [
            {"number": 1, "name": "hands off kube-system", "outcome": "denies nothing of this"},
            {
                "number": 2,
                "name": "builds act for their namespace",
                "outcome": "is about callers with another identity",
            },
            {"number": 3, "name": "services have their names", "outcome": "decides"},
        ],
    }


def test_json_answer_of_a_refusal(policy: Path) -> None:
    outcome = cli("policy", "explain", WEB, "spiffe://example.org/ns/kube-system/sa/x", "--policy", policy, "--json")
    document = outcome.json
    assert (document["is_granted"], document["ttl_seconds"], document["dns"]) == (False, None, [])
    assert document["decided_by"] == {"number": 1, "name": "hands off kube-system"}
    assert document["error"]["rule"] == "denied_by_policy"


def test_what_no_spiffe_id_is_bad_input(policy: Path) -> None:
    assert cli("policy", "explain", "web", WEB, "--policy", policy).rule == "spiffe_id_scheme"
