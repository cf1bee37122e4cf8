"""`issue`: the files, what is in them, who may read them, and what is recorded."""

from __future__ import annotations

import getpass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from citadel_py.cli.describe import public_key_facts
from citadel_py.core.bundle import Bundle
from citadel_py.core.keys import load_private_key, same_public_key
from citadel_py.core.pem import load_certificates
from citadel_py.core.policy import TTLLimits
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.verify import verify_svid
from citadel_py.core.x509svid import X509SVID
from citadel_py.store.ledger import SQLLedger
from tests.cli.support import NOW, Golden, Outcome, cli, mode_of, openssl, serials_in_ledger

WEB = "spiffe://example.org/web"
EPOCH = int(NOW.timestamp())


def issue(ca: Path, out: Path, *more: object, id: str = WEB, **options: Any) -> Outcome:
    return cli("issue", id, "--dir", ca, "--out", out, *more, **options)


def svid_in(out: Path) -> X509SVID:
    """The verified SVID in a directory, whose key belongs to it."""
    chain = load_certificates((out / "tls.crt").read_bytes())
    bundle = Bundle.from_pem(TrustDomain("example.org"), (out / "ca.crt").read_bytes())
    svid = verify_svid(chain, bundle, now=NOW)
    if (out / "tls.key").exists():
        key = load_private_key((out / "tls.key").read_bytes())
        assert same_public_key(key.public_key(), svid.leaf.public_key())  # type: ignore[arg-type]  # compared as bytes
    return svid


def test_the_three_files_verify_by_our_own_rules_and_by_openssl(web: Path) -> None:
    assert {path.name for path in web.iterdir()} == {"tls.crt", "tls.key", "ca.crt"}
    svid = svid_in(web)
    assert str(svid.id) == WEB
    assert len(svid.chain) == 2
    files = ("-CAfile", web / "ca.crt", "-untrusted", web / "tls.crt", web / "tls.crt")
    openssl("verify", "-x509_strict", "-attime", EPOCH, *files)


def test_the_key_is_0600_in_a_0700_directory(web: Path) -> None:
    assert [mode_of(web / name) for name in (".", "tls.key", "tls.crt", "ca.crt")] == [0o700, 0o600, 0o644, 0o644]


def test_the_certificate_is_in_the_ledger_with_who_asked(ca: Path, web: Path) -> None:
    with SQLLedger.open(ca / "ledger.db", writer="test") as ledger:
        (entry,) = ledger.entries()
        ledger.verify()
    assert entry.serial == svid_in(web).serial
    assert (entry.method, entry.spiffe_id, entry.time) == ("offline", WEB, NOW)
    assert entry.caller.startswith(f"offline:{getpass.getuser()}@")


def test_names_and_lifetime_are_those_asked_for(ca: Path, tmp_path: Path) -> None:
    assert issue(ca, tmp_path / "o", "--dns", "a.shop", "--dns", "b.shop", "--ttl", "1h30m").code == 0
    leaf = svid_in(tmp_path / "o").leaf
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.shop", "b.shop"]
    assert leaf.not_valid_after_utc == NOW.replace(microsecond=0) + timedelta(minutes=90)


def test_the_default_lifetime_is_the_one_in_the_help(web: Path) -> None:
    assert svid_in(web).not_after == NOW.replace(microsecond=0) + timedelta(hours=24)
    assert (TTLLimits().default, TTLLimits().maximum) == (timedelta(hours=24), timedelta(days=90))


@pytest.mark.parametrize(("key_type", "kind"), [("p384", "P-384"), ("rsa2048", "RSA 2048")])
def test_key_type(ca: Path, tmp_path: Path, key_type: str, kind: str) -> None:
    issue(ca, tmp_path / "o", "--key-type", key_type)
    key = load_private_key((tmp_path / "o/tls.key").read_bytes())
    assert public_key_facts(key.public_key())["kind"] == kind


@pytest.mark.parametrize(
    ("arguments", "code", "rule"),
    [
        (["/web"], 3, "spiffe_id_scheme"),
        (["web"], 3, "spiffe_id_scheme"),
        (["spiffe://example.org"], 5, "leaf_id_without_path"),
        (["spiffe://other.org/web"], 5, "foreign_trust_domain"),
        ([WEB, "--ttl", "91d"], 3, "lifetime_above_maximum"),
        ([WEB, "--ttl", "59s"], 3, "lifetime_below_minimum"),
        ([WEB, "--ttl", "soon"], 3, "invalid_duration"),
        ([WEB, "--dns", "Web.Shop"], 3, "invalid_dns_name"),
        ([WEB, "--dns", "*.shop"], 3, "invalid_dns_name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused_leaves_no_file_and_no_ledger_row(
    ca: Path, tmp_path: Path, arguments: list[str], code: int, rule: str
) -> None:
    outcome = cli("issue", *arguments, "--dir", ca, "--out", tmp_path / "o")
    assert (outcome.code, outcome.rule, outcome.out) == (code, rule, "")
    assert not (tmp_path / "o").exists()
    assert serials_in_ledger(ca) == []


def test_an_id_without_its_beginning_gets_a_hint(ca: Path, tmp_path: Path) -> None:
    err = issue(ca, tmp_path / "o", id="/ns/shop/sa/web").err
    assert "citadel-py: error: ID: '/ns/shop/sa/web' does not start with 'spiffe://'" in err
    assert "hint: write the whole ID: spiffe://TRUST_DOMAIN/ns/shop/sa/web" in err


def test_an_error_names_the_variable_that_a_value_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITADEL_DIR", str(tmp_path / "nothing"))
    outcome = cli("issue", WEB, "--out", tmp_path / "o")
    assert (outcome.code, outcome.rule) == (3, "authority_missing")
    assert f"hint: make one: citadel-py init --dir {tmp_path / 'nothing'}" in outcome.err


@pytest.mark.parametrize("missing", ["--dir", "--out"])
def test_a_missing_flag_is_named(ca: Path, tmp_path: Path, missing: str) -> None:
    flags = {"--dir": ca, "--out": tmp_path / "o"}
    del flags[missing]
    outcome = cli("issue", WEB, *(part for flag in flags.items() for part in flag))
    assert outcome.code == 2
    assert f"missing option '{missing}'" in outcome.err


def test_a_key_is_never_overwritten_without_force(ca: Path, web: Path) -> None:
    before = {path.name: path.read_bytes() for path in web.iterdir()}
    outcome = issue(ca, web)
    assert (outcome.code, outcome.rule) == (3, "output_exists")
    assert {path.name: path.read_bytes() for path in web.iterdir()} == before
    assert len(serials_in_ledger(ca)) == 1


def test_force_replaces_the_whole_set(ca: Path, web: Path) -> None:
    before = svid_in(web)
    assert issue(ca, web, "--force").code == 0
    assert svid_in(web).serial != before.serial
    assert {path.name for path in web.iterdir()} == {"tls.crt", "tls.key", "ca.crt"}


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_an_authority_key_that_others_may_read_is_refused(ca: Path, tmp_path: Path, mode: int) -> None:
    (ca / "intermediate/tls.key").chmod(mode)
    outcome = issue(ca, tmp_path / "o")
    assert (outcome.code, outcome.rule) == (3, "key_readable_by_others")
    assert f"hint: chmod 600 {ca / 'intermediate/tls.key'}" in outcome.err


def test_the_directory_of_an_authority_is_no_place_for_it(ca: Path) -> None:
    outcome = issue(ca, ca)
    assert (outcome.code, outcome.rule) == (3, "output_is_authority")


def test_an_expired_authority_issues_nothing(ca: Path, tmp_path: Path) -> None:
    outcome = issue(ca, tmp_path / "o", now=NOW + timedelta(days=366))
    assert (outcome.code, outcome.rule) == (4, "authority_not_valid_now")
    assert serials_in_ledger(ca) == []


def test_a_leaf_never_outlives_its_authority(ca: Path, tmp_path: Path) -> None:
    outcome = issue(ca, tmp_path / "o", "--ttl", "90d", now=NOW + timedelta(days=364))
    assert outcome.err == "note: it ends with its authority, 2027-03-04T05:06:07Z (in 1d)\n"
    chain = load_certificates((tmp_path / "o/tls.crt").read_bytes())
    assert chain[0].not_valid_after_utc == chain[1].not_valid_after_utc


# The authority's passphrase


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    """An authority whose keys are encrypted with `open sesame`."""
    init = ("init", "--dir", tmp_path / "locked", "--trust-domain", "example.org", "--passphrase-file", "-")
    assert cli(*init, stdin=b"open sesame\n").code == 0
    return tmp_path / "locked"


def test_an_encrypted_authority_opens_with_its_passphrase(locked: Path, tmp_path: Path) -> None:
    assert issue(locked, tmp_path / "o", "--passphrase-file", "-", stdin=b"open sesame\n").code == 0


def test_without_a_terminal_a_missing_passphrase_is_an_error_that_names_the_flag(locked: Path, tmp_path: Path) -> None:
    outcome = issue(locked, tmp_path / "o")
    assert (outcome.code, outcome.rule) == (3, "key_passphrase_missing")
    assert "hint: give it with --passphrase-file FILE, or CITADEL_PASSPHRASE_FILE=FILE" in outcome.err


def test_a_wrong_passphrase_is_refused(locked: Path, tmp_path: Path) -> None:
    outcome = issue(locked, tmp_path / "o", "--passphrase-file", "-", stdin=b"open barley\n")
    assert (outcome.code, outcome.rule) == (3, "key_passphrase_wrong")


# PKCS#12


@pytest.fixture
def p12(ca: Path, tmp_path: Path) -> Path:
    out = tmp_path / "p12"
    assert issue(ca, out, "--format", "p12", "--p12-passphrase-file", "-", stdin=b"s3cret\n").code == 0
    return out


def test_openssl_reads_key_and_chain_from_pkcs12(p12: Path) -> None:
    text = openssl("pkcs12", "-in", p12 / "tls.p12", "-passin", "pass:s3cret", "-nodes")
    assert text.count("BEGIN CERTIFICATE") == 2
    assert openssl("x509", "-noout", "-pubkey", stdin=text.encode()) == openssl("pkey", "-pubout", stdin=text.encode())
    assert int(openssl("x509", "-noout", "-serial", stdin=text.encode()).removeprefix("serial="), 16) == int(
        svid_in(p12).serial, 16
    )


def test_pkcs12_is_encrypted_with_aes_and_has_a_sha256_mac(p12: Path) -> None:
    info = openssl("pkcs12", "-in", p12 / "tls.p12", "-passin", "pass:s3cret", "-info", "-noout", of="stderr")
    assert "MAC: sha256" in info
    assert info.count("PBES2, PBKDF2, AES-256-CBC") == 2


def test_pkcs12_comes_without_a_plain_key(p12: Path) -> None:
    assert {path.name for path in p12.iterdir()} == {"tls.crt", "tls.p12", "ca.crt"}
    assert mode_of(p12 / "tls.p12") == 0o600


def test_pkcs12_without_a_terminal_needs_a_passphrase_file(ca: Path, tmp_path: Path) -> None:
    outcome = issue(ca, tmp_path / "o", "--format", "p12")
    assert outcome.code == 2
    assert "--p12-passphrase-file" in outcome.err
    assert serials_in_ledger(ca) == []


def test_two_passphrases_cannot_both_come_from_stdin(ca: Path, tmp_path: Path) -> None:
    outcome = issue(
        ca, tmp_path / "o", "--format", "p12", "--p12-passphrase-file", "-", "--passphrase-file", "-", stdin=b"x\n"
    )
    assert outcome.code == 2
    assert "cannot both read stdin" in outcome.err


def test_another_format_leaves_nothing_of_the_first(ca: Path, p12: Path) -> None:
    outcome = issue(ca, p12)
    assert (outcome.code, outcome.rule) == (3, "output_exists")
    assert issue(ca, p12, "--force").code == 0
    assert {path.name for path in p12.iterdir()} == {"tls.crt", "tls.key", "ca.crt"}
    svid_in(p12)


# What it says


def test_answer_of_issue(ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_run: Golden) -> None:
    monkeypatch.chdir(tmp_path)
    golden_run("issue", issue(ca, Path("web"), "--dns", "web.shop", id="spiffe://example.org/ns/shop/sa/web"))


def test_json_answer_names_the_files_and_certificates(ca: Path, tmp_path: Path) -> None:
    document = issue(ca, tmp_path / "o", "--json").json
    assert document["files"]["tls.key"] == str(tmp_path / "o/tls.key")
    assert [each["role"] for each in document["certificates"]] == ["leaf", "intermediate"]
    assert document["serial"] == svid_in(tmp_path / "o").serial == serials_in_ledger(ca)[0]
    assert SpiffeID.parse(document["id"]) == svid_in(tmp_path / "o").id
