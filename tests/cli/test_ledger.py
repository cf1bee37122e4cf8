"""`ledger`: verify, search, export, sign, prune."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from citadel_py.store.ledger import SQLLedger
from tests.cli.support import NOW, Golden, Outcome, cli
from tests.store.postgres_server import ABSENT, PostgresServer, find_binaries

WEB, API, OTHER = (f"spiffe://example.org/{name}" for name in ("ns/shop/sa/web", "ns/shop/sa/api", "ns/shopping/sa/x"))
LATER = NOW + timedelta(days=2)


def issue(ca: Path, id: str, *, ttl: str = "1h") -> Outcome:
    outcome = cli("issue", id, "--dir", ca, "--out", ca.parent / "o", "--force", "--ttl", ttl)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture
def full(ca: Path) -> Path:
    """An authority with a ledger of three certificates; the first lives longer than the others."""
    issue(ca, WEB, ttl="30d")
    issue(ca, API)
    issue(ca, OTHER)
    return ca


def ids(outcome: Outcome) -> list[str]:
    return [each["spiffe_id"] for each in outcome.json["entries"]]


def edit(ca: Path, statement: str) -> None:
    with sqlite3.connect(ca / "ledger.db") as connection:
        connection.execute(statement)
    connection.close()


# verify


def test_answer_of_verify(full: Path, golden_run: Golden) -> None:
    golden_run("ledger-verify", cli("ledger", "verify", "--dir", full))


def test_each_certificate_is_signed_for_as_it_is_issued(full: Path) -> None:
    (chain,) = cli("ledger", "verify", "--dir", full, "--json").json["chains"]
    assert (chain["writer"], chain["first"], chain["last"], chain["signed_to"]) == ("offline", 1, 3, 3)


def test_verifying_needs_no_key(full: Path) -> None:
    (full / "intermediate/tls.key").unlink()
    assert cli("ledger", "verify", "--dir", full).code == 0


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("UPDATE ledger SET caller = 'somebody' WHERE position = 2", "ledger_entry_changed"),
        ("DELETE FROM ledger WHERE position = 2", "ledger_entry_missing"),
        ("DELETE FROM ledger WHERE position = 3", "ledger_end_missing"),
        ("DELETE FROM ledger_heads", "ledger_unsigned"),
        ("UPDATE ledger_heads SET position = 2", "ledger_signature_invalid"),
    ],
)
def test_tampering_is_told_with_rule_and_place(full: Path, statement: str, rule: str) -> None:
    edit(full, statement)
    outcome = cli("ledger", "verify", "--dir", full)
    assert (outcome.code, outcome.rule, outcome.out) == (1, rule, "")
    assert "'offline'" in outcome.err
    document = cli("ledger", "verify", "--dir", full, "--json").json
    assert (document["is_valid"], document["rule"], document["chains"]) == (False, rule, [])


def test_an_old_state_of_the_ledger_is_told_by_what_was_noted_since(full: Path, tmp_path: Path) -> None:
    """A restored copy is whole and signed: only somebody who kept a later end can tell."""
    shutil.copy(full / "ledger.db", tmp_path / "old.db")
    issue(full, WEB)
    noted = cli("ledger", "verify", "--dir", full, "--json").raw
    issue(full, WEB)
    assert cli("ledger", "verify", "--dir", full, "--heads", "-", stdin=noted).code == 0
    shutil.copy(tmp_path / "old.db", full / "ledger.db")
    assert cli("ledger", "verify", "--dir", full).code == 0
    assert cli("ledger", "verify", "--dir", full, "--heads", "-", stdin=noted).rule == "ledger_end_missing"
    issue(full, API)  # as many entries as there were, and others
    assert cli("ledger", "verify", "--dir", full, "--heads", "-", stdin=noted).rule == "ledger_head_differs"


@pytest.mark.parametrize("noted", [b"", b"[]", b"{}", b'{"chains": [{"writer": "x"}]}', b'{"chains": 5}'])
def test_what_verify_did_not_print_is_no_list_of_heads(full: Path, noted: bytes) -> None:
    outcome = cli("ledger", "verify", "--dir", full, "--heads", "-", stdin=noted)
    assert (outcome.code, outcome.rule) == (3, "ledger_heads_unreadable")


def test_entries_that_nobody_signed_for_long_are_warned_about(full: Path) -> None:
    with SQLLedger.open(full / "ledger.db", writer="offline", now=lambda: NOW) as ledger:
        (last,) = list(ledger.entries())[-1:]
        ledger.append([replace(last, serial="ab" * 16)])
    soon = cli("ledger", "verify", "--dir", full, now=NOW + timedelta(minutes=59))
    late = cli("ledger", "verify", "--dir", full, now=NOW + timedelta(hours=3))
    assert (soon.code, soon.err) == (0, "")
    assert late.code == 0
    assert "warning: 1 entries of writer offline are not signed, the oldest for 3h" in late.err


@pytest.mark.parametrize("command", ["verify", "search", "export", "sign"])
def test_a_ledger_that_is_not_there_is_not_made(ca: Path, command: str) -> None:
    (ca / "ledger.db").unlink()
    outcome = cli("ledger", command, "--dir", ca)
    assert (outcome.code, outcome.rule) == (3, "ledger_absent")
    assert not (ca / "ledger.db").exists()


# search


def test_answer_of_search(full: Path, golden_run: Golden) -> None:
    outcome = cli("ledger", "search", "--dir", full, "--id", WEB)
    caller = cli("ledger", "search", "--dir", full, "--id", WEB, "--json").json["entries"][0]["caller"]
    request = cli("ledger", "search", "--dir", full, "--id", WEB, "--json").json["entries"][0]["request_id"]
    text = outcome.out.replace(caller, "offline:somebody").replace(request, "<request>")
    golden_run("ledger-search", Outcome(outcome.code, text.encode(), outcome.err))


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], [WEB, API, OTHER]),
        (["--id", API], [API]),
        (["--id", "spiffe://example.org/ns/shop/*"], [WEB, API]),
        (["--id", "spiffe://example.org/*"], [WEB, API, OTHER]),
        (["--id", "spiffe://example.org/ns/shop"], []),
        (["--id", WEB + "/*"], []),
        (["--since", "2026-03-04T05:06:08Z"], []),
        (["--until", "2026-03-04T05:06:08Z"], [WEB, API, OTHER]),
        (["--caller", "nobody"], []),
        (["--limit", "2"], [API, OTHER]),
    ],
)
def test_entries_are_found_by_what_is_known(full: Path, filters: list[str], found: list[str]) -> None:
    outcome = cli("ledger", "search", "--dir", full, "--json", *filters)
    assert ids(outcome) == found
    assert outcome.code == (0 if found else 1)
    assert outcome.json["is_complete"] == ("--limit" not in filters)


def test_a_serial_is_found_in_any_writing(full: Path) -> None:
    serial = cli("inspect", full.parent / "o/tls.crt", "--json").json["objects"][0]["serial"]
    pairs = ":".join(serial[at : at + 2] for at in range(0, len(serial), 2)).upper()
    for written in (serial, pairs):
        assert ids(cli("ledger", "search", "--dir", full, "--serial", written, "--json")) == [OTHER]
    assert cli("ledger", "search", "--dir", full, "--serial", "nothing hex").rule == "invalid_serial"


# export


def test_who_has_the_export_and_the_authority_can_verify_without_this_program(full: Path) -> None:
    """The recipe of docs/reference/ledger.md."""
    *entries, head = [json.loads(line) for line in cli("ledger", "export", "--dir", full).out.splitlines()]
    previous = bytes(32)
    for entry in entries:
        assert (entry.pop("version"), entry.pop("type")) == (1, "entry")
        told = entry.pop("hash")
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(previous + text.encode()).digest()
        assert previous.hex() == told
    assert head["hash"] == previous.hex()
    signature = bytes.fromhex(head.pop("signature"))
    head["purpose"], _ = head.pop("type"), head.pop("version")
    statement = "citadel-py ledger statement v1\n" + json.dumps(head, sort_keys=True, separators=(",", ":"))
    key = x509.load_pem_x509_certificates((full / "intermediate/tls.crt").read_bytes())[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    digest = hashes.SHA384() if key.key_size > 256 else hashes.SHA256()
    key.verify(signature, statement.encode(), ec.ECDSA(digest))  # raises unless it is right


def test_an_export_can_be_narrowed(full: Path) -> None:
    lines = cli("ledger", "export", "--dir", full, "--id", API).out.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["entry", "head"]


# sign


def test_a_chain_that_was_never_signed_is_signed_only_on_request(full: Path) -> None:
    edit(full, "DELETE FROM ledger_heads")
    outcome = cli("ledger", "sign", "--dir", full)
    assert (outcome.code, outcome.rule) == (1, "ledger_unsigned")
    assert "warning: the end of the ledger's chain was not signed" in issue(full, WEB).err
    assert cli("ledger", "sign", "--dir", full, "--adopt").code == 2  # nobody to ask
    adopted = cli("ledger", "sign", "--dir", full, "--adopt", "--yes")
    assert (adopted.code, adopted.out) == (0, "offline: signed to entry 4\n")
    assert cli("ledger", "verify", "--dir", full).code == 0


def test_nothing_that_was_changed_gets_signed(full: Path) -> None:
    with SQLLedger.open(full / "ledger.db", writer="offline", now=lambda: NOW) as ledger:
        (last,) = list(ledger.entries())[-1:]
        ledger.append([replace(last, serial="ab" * 16)])
    edit(full, "UPDATE ledger SET caller = 'somebody' WHERE position = 4")
    for more in ((), ("--adopt", "--yes")):
        assert cli("ledger", "sign", "--dir", full, *more).rule == "ledger_entry_changed"


def test_after_a_new_authority_the_old_one_vouches_for_the_chain(full: Path, tmp_path: Path) -> None:
    old = shutil.copy(full / "intermediate/tls.crt", tmp_path / "old.crt")
    assert cli("init", "--dir", full, "--trust-domain", "example.org", "--force").code == 0
    outcome = cli("ledger", "verify", "--dir", full)
    assert (outcome.code, outcome.rule) == (1, "ledger_authority_unknown")
    assert cli("ledger", "verify", "--dir", full, "--authorities", old).code == 0
    assert cli("ledger", "sign", "--dir", full).rule == "ledger_authority_unknown"
    assert cli("ledger", "sign", "--dir", full, "--authorities", old).code == 0
    assert cli("ledger", "verify", "--dir", full).code == 0


# prune: the first certificate lives for 30 days, the others for an hour


def prune(ca: Path, *arguments: object, days: int) -> Outcome:
    return cli("ledger", "prune", "--dir", ca, *arguments, now=NOW + timedelta(days=days))


def test_entries_behind_a_certificate_that_lives_stay(full: Path) -> None:
    outcome = prune(full, "--keep", "1d", "--yes", days=20)
    assert (outcome.code, outcome.out) == (0, "")
    assert ids(cli("ledger", "search", "--dir", full, "--json")) == [WEB, API, OTHER]


def test_what_remains_verifies_and_goes_on(full: Path) -> None:
    issue(full, WEB, ttl="60d")
    issue(full, API)
    outcome = prune(full, "--keep", "1d", "--yes", days=40)
    assert (outcome.code, outcome.out) == (0, "offline: 3 pruned\n")
    issue(full, OTHER)
    assert ids(cli("ledger", "search", "--dir", full, "--json")) == [WEB, API, OTHER]
    (chain,) = cli("ledger", "verify", "--dir", full, "--json").json["chains"]
    assert (chain["first"], chain["last"], chain["signed_to"]) == (4, 6, 6)
    edit(full, "DELETE FROM ledger_heads WHERE purpose = 'checkpoint'")
    assert cli("ledger", "verify", "--dir", full).rule == "ledger_entry_missing"


def test_a_dry_run_and_a_missing_yes_change_nothing(full: Path) -> None:
    assert prune(full, "--keep", "1d", "--dry-run", days=40).out == "offline: 3 would go\n"
    assert prune(full, "--keep", "1d", days=40).code == 2
    assert len(ids(cli("ledger", "search", "--dir", full, "--json"))) == 3


def test_nothing_goes_from_a_ledger_that_does_not_verify(full: Path) -> None:
    edit(full, "UPDATE ledger SET caller = 'somebody' WHERE position = 3")
    assert prune(full, "--keep", "1d", "--yes", days=40).rule == "ledger_entry_changed"
    assert len(ids(cli("ledger", "search", "--dir", full, "--json"))) == 3


def test_the_future_is_not_pruned(full: Path) -> None:
    outcome = prune(full, "--before", "2026-04-05T00:00:00Z", "--yes", days=1)
    assert (outcome.code, outcome.rule) == (3, "ledger_prune_future")


@pytest.mark.parametrize("arguments", [[], ["--keep", "1d", "--before", "2026-01-01T00:00:00Z"]])
def test_prune_needs_to_know_what(full: Path, arguments: list[str]) -> None:
    assert prune(full, *arguments, days=1).code == 2


# a ledger elsewhere


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(ABSENT)
    server = PostgresServer(binaries)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def test_every_command_works_on_a_ledger_on_postgresql(ca: Path, tmp_path: Path, postgres: PostgresServer) -> None:
    there = ("--dir", ca, "--ledger", postgres.url())
    assert cli("issue", WEB, *there, "--out", tmp_path / "o", "--ttl", "1h").code == 0
    assert cli("token", "create", WEB, *there).code == 0
    assert cli("ledger", "verify", *there).code == 0
    found = cli("ledger", "search", *there, "--id", "spiffe://example.org/*", "--json")
    assert found.code == 0, found.err
    assert ids(found) == [WEB]
    assert len(cli("ledger", "export", *there).out.splitlines()) == 2
    assert cli("ledger", "prune", *there, "--keep", "1d", "--yes", now=LATER).out == "offline: 1 pruned\n"
    assert cli("ledger", "sign", *there).out == "offline: signed to entry 1\n"
    assert cli("ledger", "verify", *there).code == 0
    assert not [each.serial for each in SQLLedger.open(ca / "ledger.db", writer="x").entries()]


@pytest.mark.parametrize(
    ("url", "code", "rule"),
    [
        ("postgresql://user:secret@host/db", 3, "ledger_password"),
        ("postgresql://host/db?nonsense=1", 3, "ledger_url"),
        ("postgresql://host/db?passfile=%zz", 3, "ledger_url"),
        ("mysql://host/db", 3, "ledger_database"),
        ("postgresql:///db?host=/nowhere", 4, "ledger_unreachable"),
    ],
)
def test_an_address_that_cannot_work_is_told(ca: Path, url: str, code: int, rule: str) -> None:
    outcome = cli("ledger", "verify", "--dir", ca, "--ledger", url)
    assert (outcome.code, outcome.rule) == (code, rule)
    assert "secret" not in outcome.err
