"""`verify`: 0, or 1 and the rule; 3 for what cannot be read; never a root that was not given."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import NOW, Golden, Outcome, cli, openssl


def verify(chain: object, bundle: object, *more: object, **options: Any) -> Outcome:
    return cli("verify", chain, "--bundle", bundle, *more, **options)


@pytest.fixture
def other_bundle(tmp_path: Path) -> Path:
    """The bundle of another authority of the same trust domain."""
    assert cli("init", "--dir", tmp_path / "other", "--trust-domain", "example.org").code == 0
    return tmp_path / "other/ca.crt"


def test_a_chain_verifies_against_its_bundle(web: Path) -> None:
    outcome = verify(web / "tls.crt", web / "ca.crt")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("verified spiffe://example.org/web\n")


def test_answer_of_verify(web: Path, monkeypatch: pytest.MonkeyPatch, golden_run: Golden) -> None:
    monkeypatch.chdir(web.parent)
    golden_run("verify", verify("web/tls.crt", "web/ca.crt", "--id", "spiffe://example.org/web"))


@pytest.mark.parametrize("form", ["pem", "jwks", "map"])
def test_every_form_of_a_bundle_is_read(ca: Path, web: Path, tmp_path: Path, form: str) -> None:
    one = json.loads((ca / "bundle.json").read_text())
    (tmp_path / "jwks").write_text(json.dumps(one))
    (tmp_path / "map").write_text(json.dumps({"trust_domains": {"example.org": one}}))
    (tmp_path / "pem").write_bytes((ca / "ca.crt").read_bytes())
    outcome = verify(web / "tls.crt", tmp_path / form)
    assert outcome.code == 0
    assert ("taken from the leaf" in outcome.out) == (form != "map")


def test_a_map_is_asked_for_the_trust_domain_of_the_leaf_only(ca: Path, web: Path, tmp_path: Path) -> None:
    one = json.loads((ca / "bundle.json").read_text())
    (tmp_path / "map").write_text(json.dumps({"trust_domains": {"other.org": one}}))
    outcome = verify(web / "tls.crt", tmp_path / "map")
    assert (outcome.code, outcome.rule) == (1, "trust_domain_unknown")


def test_another_authority_is_not_trusted(web: Path, other_bundle: Path) -> None:
    outcome = verify(web / "tls.crt", other_bundle)
    assert (outcome.code, outcome.out, outcome.rule) == (1, "", "unknown_authority")


def test_a_leaf_without_its_intermediate_fails_and_the_hint_says_what_to_do(web: Path, tmp_path: Path) -> None:
    openssl("x509", "-in", web / "tls.crt", "-out", tmp_path / "leaf.crt")
    outcome = verify(tmp_path / "leaf.crt", web / "ca.crt")
    assert (outcome.code, outcome.rule) == (1, "issuer_missing")
    assert "hint: if it is an intermediate: present it along with the leaf" in outcome.err


@pytest.mark.parametrize(("id", "code"), [("spiffe://example.org/web", 0), ("spiffe://example.org/db", 1)])
def test_the_id_must_be_the_expected_one(web: Path, id: str, code: int) -> None:
    outcome = verify(web / "tls.crt", web / "ca.crt", "--id", id)
    assert (outcome.code, outcome.rule) == (code, None if code == 0 else "unexpected_id")


@pytest.mark.parametrize(
    ("at", "rule"),
    [
        ("2026-03-04T05:04:07Z", None),
        ("2026-03-04T05:04:06Z", "leaf_not_yet_valid"),
        ("2026-03-05T06:06:07+01:00", None),
        ("2026-03-05T05:06:08Z", "leaf_expired"),
    ],
)
def test_the_moment_may_be_chosen(web: Path, at: str, rule: str | None) -> None:
    outcome = verify(web / "tls.crt", web / "ca.crt", "--at", at)
    assert (outcome.code, outcome.rule) == (1 if rule else 0, rule)


def test_without_a_moment_it_is_now(web: Path) -> None:
    assert verify(web / "tls.crt", web / "ca.crt", now=NOW + timedelta(days=2)).rule == "leaf_expired"


def test_an_authority_is_no_workload(ca: Path, web: Path) -> None:
    assert verify(ca / "intermediate/tls.crt", web / "ca.crt").rule == "leaf_is_ca"


@pytest.mark.parametrize("which", ["chain", "bundle"])
@pytest.mark.parametrize("content", [b"", b"noise", b"{", b"-----BEGIN CERTIFICATE-----\n", None], ids=ascii)
def test_what_cannot_be_read_is_bad_input(web: Path, tmp_path: Path, which: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "broken").write_bytes(content)
    files = {"chain": web / "tls.crt", "bundle": web / "ca.crt", which: tmp_path / "broken"}
    outcome = verify(files["chain"], files["bundle"])
    assert (outcome.code, outcome.out) == (3, "")
    assert str(tmp_path / "broken") in outcome.err


@pytest.mark.parametrize("moment", ["yesterday", "2026-03-04", "2026-03-04T05:06:07", "0001-01-01T00:00:00+01:00"])
def test_a_moment_without_a_zone_is_refused(web: Path, moment: str) -> None:
    outcome = verify(web / "tls.crt", web / "ca.crt", "--at", moment)
    assert (outcome.code, outcome.rule) == (3, "invalid_time")
    assert "--at: " in outcome.err


def test_chain_and_bundle_cannot_both_come_from_stdin() -> None:
    assert verify("-", "-").code in (2, 3)


@pytest.mark.parametrize("is_valid", [True, False])
def test_json_has_one_shape_for_yes_and_no(web: Path, other_bundle: Path, is_valid: bool) -> None:  # noqa: FBT001 - a parameter
    outcome = verify(web / "tls.crt", web / "ca.crt" if is_valid else other_bundle, "--json")
    document = outcome.json
    assert list(document) == ["version", "is_valid", "rule", "message", "id", "at", "certificates"]
    assert (document["is_valid"], outcome.code) == (is_valid, 0 if is_valid else 1)
    assert (document["rule"] is None) == is_valid
    assert [each["role"] for each in document["certificates"]] == ["leaf", "intermediate"]
