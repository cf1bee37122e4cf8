"""`bundle`, `token` and `needs-renewal`."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography import x509

from citadel_py.cli.commands.needs_renewal import parse_window
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import BadInput, Unauthenticated
from citadel_py.core.join_token import is_join_token, token_digest
from citadel_py.core.spiffe import TrustDomain
from citadel_py.store.ledger import SQLLedger
from tests.cli.support import NOW, Golden, cli

EXAMPLE = TrustDomain("example.org")
WEB = "spiffe://example.org/web"

# bundle


def test_export_as_pem_is_ca_crt(ca: Path) -> None:
    outcome = cli("bundle", "export", "--dir", ca)
    assert (outcome.code, outcome.raw) == (0, (ca / "ca.crt").read_bytes())


def test_export_as_jwks_is_the_spiffe_form(ca: Path) -> None:
    outcome = cli("bundle", "export", "--dir", ca, "--format", "jwks")
    exported = Bundle.from_jwks(EXAMPLE, outcome.raw)
    assert exported == Bundle.from_jwks(EXAMPLE, (ca / "bundle.json").read_bytes())
    assert exported.to_pem() == (ca / "ca.crt").read_bytes()


def test_the_bundle_is_shown_without_opening_a_key(ca: Path) -> None:
    (ca / "intermediate/tls.key").unlink()
    assert cli("bundle", "show", "--dir", ca).code == 0


def test_answer_of_bundle_show(ca: Path, golden_run: Golden) -> None:
    golden_run("bundle-show", cli("bundle", "show", "--dir", ca))


def test_json_answer_of_bundle_show(ca: Path) -> None:
    document = cli("bundle", "show", "--dir", ca, "--json").json
    assert (document["trust_domain"], document["sequence"]) == ("example.org", 1)
    assert [each["role"] for each in document["certificates"]] == ["root"]


@pytest.mark.parametrize("command", [("bundle", "show"), ("bundle", "export"), ("token", "create", WEB)], ids=" ".join)
def test_where_no_authority_is_a_hint_says_how_to_make_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    outcome = cli(*command, "--dir", tmp_path)
    assert (outcome.code, outcome.rule) == (3, "authority_missing")
    assert f"hint: make one: citadel-py init --dir {tmp_path}" in outcome.err
    assert list(tmp_path.iterdir()) == []


# token


def test_the_token_on_stdout_is_usable_once_until_it_expires(ca: Path) -> None:
    outcome = cli("token", "create", WEB, "--dir", ca)
    digest = token_digest(outcome.out.removesuffix("\n"))
    assert is_join_token(outcome.out.removesuffix("\n"))
    with SQLLedger.open(ca / "ledger.db", writer="test", now=lambda: NOW) as store:
        assert str(store.find(digest, now=NOW + timedelta(minutes=9)).id) == WEB
        with pytest.raises(Unauthenticated):
            store.find(digest, now=NOW + timedelta(minutes=10))


def test_the_token_is_nowhere_but_on_stdout(ca: Path) -> None:
    outcome = cli("token", "create", WEB, "--dir", ca)
    token = outcome.out.strip()
    assert token not in outcome.err
    assert not any(token.encode() in path.read_bytes() for path in ca.rglob("*") if path.is_file())


def test_two_tokens_differ(ca: Path) -> None:
    assert cli("token", "create", WEB, "--dir", ca).out != cli("token", "create", WEB, "--dir", ca).out


def test_the_note_says_for_whom_and_until_when(ca: Path) -> None:
    err = cli("token", "create", WEB, "--dir", ca, "--ttl", "1h").err
    assert err == f"note: for {WEB}, once, until 2026-03-04T06:06:07Z (in 1h)\n"


@pytest.mark.parametrize(
    ("id", "ttl", "code", "rule"),
    [
        ("spiffe://other.org/web", "10m", 5, "foreign_trust_domain"),
        ("spiffe://example.org", "10m", 5, "leaf_id_without_path"),
        ("/web", "10m", 3, "spiffe_id_scheme"),
        (WEB, "0s", 3, "token_lifetime"),
        (WEB, "8d", 3, "token_lifetime"),
        (WEB, "999999999d", 3, "token_lifetime"),
    ],
)
def test_a_token_that_could_not_work_is_not_made(ca: Path, id: str, ttl: str, code: int, rule: str) -> None:
    outcome = cli("token", "create", id, "--dir", ca, "--ttl", ttl)
    assert (outcome.code, outcome.rule, outcome.out) == (code, rule, "")


def test_json_answer_of_token_create(ca: Path) -> None:
    document = cli("token", "create", WEB, "--dir", ca, "--json").json
    assert is_join_token(document.pop("token"))
    assert document == {"version": 1, "id": WEB, "expires_at": "2026-03-04T05:16:07Z"}


# needs-renewal: the certificate of `web` lives from 2 minutes before NOW to 24 hours after it


@pytest.mark.parametrize(
    ("before", "at", "code"),
    [
        ("1/3", timedelta(hours=15, minutes=58), 1),
        ("1/3", timedelta(hours=16), 0),
        ("1/2", timedelta(hours=12), 0),
        ("8h", timedelta(hours=15, minutes=59), 1),
        ("8h", timedelta(hours=16, seconds=1), 0),
        ("1/3", timedelta(days=30), 0),
    ],
)
def test_renewal_is_due_a_part_of_its_life_or_a_while_before_its_end(
    web: Path, before: str, at: timedelta, code: int
) -> None:
    outcome = cli("needs-renewal", web / "tls.crt", "--before", before, now=NOW + at)
    assert outcome.code == code
    assert outcome.out.startswith("no:" if code else "yes:")


def test_a_third_is_the_default(web: Path) -> None:
    due = "2026-03-04T21:05:27Z"  # 24h02m of life, a third of it before 2026-03-05T05:06:07Z
    assert cli("needs-renewal", web / "tls.crt", "--json").json == {
        "version": 1,
        "needs_renewal": False,
        "renew_at": due,
        "not_after": "2026-03-05T05:06:07Z",
    }


def test_a_chain_ends_with_the_first_of_its_certificates(ca: Path, tmp_path: Path) -> None:
    late = NOW + timedelta(days=364, hours=23)
    cli("issue", WEB, "--dir", ca, "--out", tmp_path / "o", "--ttl", "90d", now=late)
    chain = tmp_path / "o/tls.crt"
    not_after = x509.load_pem_x509_certificates(chain.read_bytes())[1].not_valid_after_utc
    assert cli("needs-renewal", chain, "--json", now=late).json["not_after"] == f"{not_after:%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize("content", [b"", b"noise", b"-----BEGIN CERTIFICATE-----"], ids=ascii)
def test_what_is_no_certificate_is_neither_yes_nor_no(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert cli("needs-renewal", tmp_path / "x").code == 3
    assert cli("needs-renewal", tmp_path / "missing").code == 3


@pytest.mark.parametrize(
    ("text", "window"),
    [("1/3", Fraction(1, 3)), ("99/100", Fraction(99, 100)), ("12h", timedelta(hours=12)), ("1d", timedelta(days=1))],
)
def test_a_window_is_a_fraction_or_a_duration(text: str, window: object) -> None:
    assert parse_window(text) == window


@pytest.mark.parametrize("text", ["", "0/3", "3/3", "4/3", "1/0", "0s", "0.3", "-1/3", "1/3 ", "half"])
def test_another_window_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_window(text)
