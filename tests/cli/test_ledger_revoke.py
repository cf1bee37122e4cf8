"""`ledger revoke`: in the ledger first, then in lists of every authority of the path."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from citadel_py.core.crl import CRL, load_crls, number_of
from citadel_py.core.pem import load_certificates
from tests.cli.support import NOW, Golden, Outcome, cli

WEB, API = (f"spiffe://example.org/ns/shop/sa/{name}" for name in ("web", "api"))
WEEK = timedelta(days=7)


def issue(ca: Path, id: str = WEB, *, ttl: str = "24h") -> str:
    """The serial of a new certificate."""
    out = ca.parent / "o"
    outcome = cli("issue", id, "--dir", ca, "--out", out, "--force", "--ttl", ttl)
    assert outcome.code == 0, outcome.err
    return f"{load_certificates((out / 'tls.crt').read_bytes())[0].serial_number:032x}"


def revoke(ca: Path, *arguments: object, now: datetime = NOW) -> Outcome:
    return cli("ledger", "revoke", *arguments, "--dir", ca, "--yes", now=now)


def lists(ca: Path) -> dict[str, CRL]:
    """By the kind of authority that signed."""
    found = load_crls((ca / "crl.pem").read_bytes())
    return {"root" if "root" in crl.issuer.rfc4514_string() else "intermediate": crl for crl in found}


def serials(crl: CRL) -> set[str]:
    return {f"{entry.serial_number:032x}" for entry in crl}


def kinds(ca: Path) -> list[tuple[str, str]]:
    entries = cli("ledger", "search", "--dir", ca, "--json", "--limit", "100").json["entries"]
    return [(each["kind"], each["serial"]) for each in entries]


def test_answer_of_revoke(ca: Path, golden_run: Golden) -> None:
    issue(ca)
    golden_run("ledger-revoke", revoke(ca, WEB))


def test_a_serial_is_in_the_ledger_and_in_the_list_of_its_authority(ca: Path) -> None:
    serial, other = issue(ca), issue(ca, API)
    assert revoke(ca, serial.upper()).code == 0

    assert (serials(lists(ca)["intermediate"]), serials(lists(ca)["root"])) == ({serial}, set())
    assert kinds(ca) == [("issued", serial), ("issued", other), ("revoked", serial)]
    assert lists(ca)["intermediate"].next_update_utc == (NOW + WEEK).replace(microsecond=0)
    assert cli("ledger", "verify", "--dir", ca).code == 0


def test_an_identity_loses_all_that_still_lives(ca: Path) -> None:
    ended, first, second, other = issue(ca, ttl="1h"), issue(ca), issue(ca), issue(ca, API)
    later = NOW + timedelta(hours=2)
    outcome = cli("ledger", "revoke", WEB, "--dir", ca, "--yes", "--json", now=later)

    assert {each["serial"] for each in outcome.json["revoked"]} == {first, second}
    assert serials(lists(ca)["intermediate"]) == {first, second}
    assert {ended, other}.isdisjoint({first, second})


def test_without_a_target_the_lists_are_written_anew_with_higher_numbers(ca: Path) -> None:
    serial = issue(ca, ttl="30d")
    revoke(ca, serial)
    before = lists(ca)
    assert cli("ledger", "revoke", "--dir", ca, now=NOW).code == 0  # nothing to be asked, and the clock stands still

    assert all(number_of(crl) == number_of(before[kind]) + 1 for kind, crl in lists(ca).items())
    assert serials(lists(ca)["intermediate"]) == {serial}
    assert len(kinds(ca)) == 2


def test_what_has_ended_leaves_the_list(ca: Path) -> None:
    ended, living = issue(ca, ttl="1h"), issue(ca, ttl="30d")
    revoke(ca, ended, living)
    revoke(ca, now=NOW + timedelta(days=1))

    assert serials(lists(ca)["intermediate"]) == {living}


def test_a_ledger_from_a_backup_takes_no_revocation_back(ca: Path) -> None:
    serial = issue(ca)
    shutil.copy(ca / "ledger.db", ca.parent / "backup.db")
    revoke(ca, serial)
    shutil.copy(ca.parent / "backup.db", ca / "ledger.db")
    revoke(ca)

    assert serials(lists(ca)["intermediate"]) == {serial}


def test_revoking_twice_is_no_error_and_one_entry(ca: Path) -> None:
    serial = issue(ca)
    revoke(ca, serial)
    again = revoke(ca, serial)

    assert (again.code, again.out) == (0, "")
    assert kinds(ca).count(("revoked", serial)) == 1


def test_a_dry_run_changes_nothing(ca: Path) -> None:
    serial = issue(ca)
    outcome = cli("ledger", "revoke", serial, "--dir", ca, "--dry-run")

    assert outcome.out == f"{serial} {WEB} would be revoked\n"
    assert not (ca / "crl.pem").exists()
    assert len(kinds(ca)) == 1


def test_nobody_is_asked_where_there_is_nobody(ca: Path) -> None:
    serial = issue(ca)
    assert cli("ledger", "revoke", serial, "--dir", ca).code == 2
    assert not (ca / "crl.pem").exists()


@pytest.mark.parametrize("target", ["abcdef", API])
def test_what_the_ledger_does_not_know_is_refused(ca: Path, target: str) -> None:
    issue(ca)
    outcome = revoke(ca, target)
    assert (outcome.code, outcome.rule) == (3, "revoke_unknown")


def test_what_is_no_serial_is_refused(ca: Path) -> None:
    assert revoke(ca, "xyz").rule == "invalid_serial"


def test_what_another_authority_signed_is_refused(ca: Path, tmp_path: Path) -> None:
    serial = issue(ca)
    other = tmp_path / "other"
    assert cli("init", "--dir", other, "--trust-domain", "example.org").code == 0
    outcome = cli("ledger", "revoke", serial, "--dir", other, "--ledger", ca / "ledger.db", "--yes")
    assert outcome.rule == "revoke_other_authority"


# a root whose key is elsewhere


@pytest.fixture
def apart(ca: Path, tmp_path: Path) -> Path:
    """The root's key, and nothing of it in D."""
    place = tmp_path / "usb"
    place.mkdir(mode=0o700)
    (ca / "root" / "tls.key").rename(place / "tls.key")
    return place


def test_without_the_roots_key_nothing_is_revoked_and_the_way_is_told(ca: Path, apart: Path) -> None:
    serial = issue(ca)
    outcome = revoke(ca, serial)

    assert (outcome.code, outcome.rule) == (3, "crl_incomplete")
    assert "root CA" in outcome.err
    assert "--root-dir" in outcome.err
    assert len(kinds(ca)) == 1
    assert revoke(ca, serial, "--root-dir", apart).code == 0


def test_the_roots_list_is_kept_while_it_is_good(ca: Path, apart: Path) -> None:
    revoke(ca, "--root-dir", apart, "--next-update", "30d")
    root = lists(ca)["root"]
    serial = issue(ca)
    assert revoke(ca, serial).code == 0
    assert lists(ca)["root"] == root
    assert serials(lists(ca)["intermediate"]) == {serial}

    late = revoke(ca, now=NOW + timedelta(days=31))
    assert late.rule == "crl_incomplete"


def test_the_key_of_another_root_is_refused(ca: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert cli("init", "--dir", other, "--trust-domain", "example.org").code == 0
    assert revoke(ca, "--root-dir", other / "root").rule == "authority_key_mismatch"


def test_encrypted_keys_open_with_one_passphrase(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("long enough\n")
    passphrase.chmod(0o600)
    ca = tmp_path / "D"
    arguments = ("--dir", ca, "--passphrase-file", passphrase)
    assert cli("init", *arguments, "--trust-domain", "example.org").code == 0
    assert cli("ledger", "revoke", *arguments).code == 0
    assert all(isinstance(crl, x509.CertificateRevocationList) for crl in lists(ca).values())
