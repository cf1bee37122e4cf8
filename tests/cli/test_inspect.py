"""`inspect`: whatever a file holds, with every certificate under its role; no key material, no crash."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.cli.pieces import Reader
from citadel_py.core.keys import load_private_key, public_key_sha256
from tests.cli.support import NOW, Golden, Outcome, cli, openssl


def objects(outcome: Outcome) -> list[dict[str, object]]:
    found: list[dict[str, object]] = outcome.json["objects"]
    return found


def types(outcome: Outcome) -> list[object]:
    return [each["type"] for each in objects(outcome)]


def test_every_certificate_is_labelled_with_its_role(web: Path) -> None:
    outcome = cli("inspect", web, "--json")
    assert [each["role"] for each in objects(outcome) if each["type"] == "certificate"] == [
        "root",
        "leaf",
        "intermediate",
    ]
    headings = [
        line.split(": ")[1] for line in cli("inspect", web).out.splitlines() if not line.startswith(" ") and line
    ]
    assert headings == ["root certificate", "leaf certificate", "intermediate certificate", "private key"]


def test_answer_of_inspect(web: Path, monkeypatch: pytest.MonkeyPatch, golden_run: Golden) -> None:
    monkeypatch.chdir(web.parent)
    golden_run("inspect-workload", cli("inspect", "web"))


def test_answer_of_inspect_for_an_authority(ca: Path, monkeypatch: pytest.MonkeyPatch, golden_run: Golden) -> None:
    monkeypatch.chdir(ca.parent)
    golden_run("inspect-authority", cli("inspect", "ca"))


def test_json_answer_of_inspect(web: Path, monkeypatch: pytest.MonkeyPatch, golden_run: Golden) -> None:
    monkeypatch.chdir(web.parent)
    golden_run("inspect-json", cli("inspect", "web/tls.crt", "--json"))


def test_answer_of_inspect_for_a_csr(csr: Path, monkeypatch: pytest.MonkeyPatch, golden_run: Golden) -> None:
    monkeypatch.chdir(csr.parent)
    golden_run("inspect-csr", cli("inspect", "web.csr"))


@pytest.mark.parametrize(
    ("later", "words"),
    [(timedelta(), ""), (timedelta(days=2), "EXPIRED 1d ago"), (timedelta(hours=-3), "NOT YET VALID: begins in 2h58m")],
    ids=["valid", "expired", "not yet valid"],
)
def test_a_certificate_outside_its_time_says_so(web: Path, later: timedelta, words: str) -> None:
    outcome = cli("inspect", web / "tls.crt", now=NOW + later)
    assert outcome.code == 0
    assert words in outcome.out
    assert ("EXPIRED" in outcome.out or "NOT YET" in outcome.out) == bool(words)


def test_of_a_private_key_only_kind_and_hash_are_shown(web: Path) -> None:
    outcome = cli("inspect", web / "tls.key", "--json")
    key = load_private_key((web / "tls.key").read_bytes())
    (facts,) = objects(outcome)
    assert facts["key"] == {"kind": "P-256", "public_key_sha256": public_key_sha256(key.public_key())}
    body = "".join((web / "tls.key").read_text().splitlines()[1:-1])
    assert body[40:80] not in outcome.out.replace("\n", "")
    number = key.private_numbers().private_value  # type: ignore[union-attr]  # it is EC
    assert f"{number:x}" not in outcome.out


def test_a_key_that_others_may_read_is_warned_about(web: Path) -> None:
    assert "warning" not in cli("inspect", web / "tls.key").err
    (web / "tls.key").chmod(0o644)
    outcome = cli("inspect", web / "tls.key")
    assert outcome.code == 0
    assert f"hint: chmod 600 {web / 'tls.key'}" in outcome.err


def test_an_encrypted_key_is_shown_as_such_and_opened_with_its_passphrase(web: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    openssl("pkcs8", "-topk8", "-in", web / "tls.key", "-passout", "pass:hush", "-out", locked)
    closed = cli("inspect", locked, "--json")
    assert (closed.code, objects(closed)[0]["is_encrypted"], objects(closed)[0]["key"]) == (0, True, None)
    opened = cli("inspect", locked, "--json", "--passphrase-file", "-", stdin=b"hush\n")
    assert objects(opened)[0]["key"] == objects(cli("inspect", web / "tls.key", "--json"))[0]["key"]


@pytest.mark.parametrize("form", ["certificate", "csr", "private_key", "public_key"])
def test_der_is_recognised(web: Path, csr: Path, tmp_path: Path, form: str) -> None:
    der = tmp_path / "x.der"
    commands = {
        "certificate": ("x509", "-in", web / "tls.crt"),
        "csr": ("req", "-in", csr),
        "private_key": ("pkey", "-in", web / "tls.key"),
        "public_key": ("pkey", "-in", web / "tls.key", "-pubout"),
    }
    openssl(*commands[form], "-outform", "der", "-out", der)
    outcome = cli("inspect", der, "--json")
    assert (outcome.code, types(outcome)) == (0, [form])


def test_pkcs12_is_opened_with_its_passphrase(ca: Path, tmp_path: Path) -> None:
    source = ("--format", "p12", "--p12-passphrase-file", "-")
    cli("issue", "spiffe://example.org/web", "--dir", ca, "--out", tmp_path / "o", *source, stdin=b"s3cret")
    outcome = cli("inspect", tmp_path / "o/tls.p12", "--json", "--passphrase-file", "-", stdin=b"s3cret")
    assert types(outcome) == ["certificate", "certificate", "private_key"]
    assert cli("inspect", tmp_path / "o/tls.p12").code == 3


def test_a_spiffe_bundle_and_a_map_of_them(ca: Path, tmp_path: Path) -> None:
    one = cli("inspect", ca / "bundle.json", "--json")
    assert types(one) == ["bundle", "certificate"]
    both = {"trust_domains": {"example.org": json.loads((ca / "bundle.json").read_text())}}
    (tmp_path / "map.json").write_text(json.dumps(both))
    mapped = cli("inspect", tmp_path / "map.json", "--json")
    assert objects(mapped)[0]["trust_domain"] == "example.org"


def test_pieces_in_one_file_are_shown_in_their_order(web: Path, csr: Path, tmp_path: Path) -> None:
    parts = [web / "tls.key", csr, web / "ca.crt"]
    (tmp_path / "all").write_text("some text\n".join(path.read_text() for path in parts))
    assert types(cli("inspect", tmp_path / "all", "--json")) == ["private_key", "csr", "certificate"]


def test_a_refused_csr_names_the_rule_and_is_no_error(tmp_path: Path) -> None:
    weak = openssl("req", "-new", "-newkey", "rsa:1024", "-nodes", "-keyout", tmp_path / "k", "-subj", "/CN=old")
    outcome = cli("inspect", "-", "--json", stdin=weak.encode())
    (facts,) = objects(outcome)
    assert outcome.code == 0
    assert facts["policy"]["ok"] is False  # type: ignore[index]  # an object of JSON
    assert "rsa" in facts["policy"]["rule"]  # type: ignore[index]  # the same


def broken(web: Path) -> dict[str, bytes]:
    pem = (web / "tls.crt").read_bytes()
    return {
        "empty": b"",
        "noise": b"\x00\x01noise",
        "cut off": pem[:300],
        "damaged": (web / "ca.crt").read_bytes().replace(b"MII", b"AAA", 1),
        "not base64": b"-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
        "JSON that is no bundle": b'{"keys": 7}',
        "JSON that is cut off": b'{"keys": [',
        "empty key": b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
        "DER that is cut off": bytes.fromhex("3082010a0282"),
    }


BROKEN = (
    "empty", "noise", "cut off", "damaged", "not base64", "JSON that is no bundle", "JSON that is cut off", "empty key",
    "DER that is cut off",
)  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_told_with_exit_3(web: Path, name: str) -> None:
    outcome = cli("inspect", "-", "--json", stdin=broken(web)[name])
    assert outcome.code == 3
    assert types(outcome) == ["unreadable"]
    assert outcome.rule == objects(outcome)[0]["error"]["rule"]  # type: ignore[index]  # an object of JSON


def test_a_broken_piece_does_not_hide_the_others(web: Path) -> None:
    pem = (web / "tls.crt").read_bytes()
    outcome = cli("inspect", "-", "--json", stdin=broken(web)["not base64"] + pem)
    assert (outcome.code, types(outcome)) == (3, ["unreadable", "certificate", "certificate"])


def test_a_file_that_cannot_be_opened_does_not_hide_the_others_of_its_directory(web: Path) -> None:
    (web / "ca.crt").write_bytes(bytes(2 << 20))
    outcome = cli("inspect", web, "--json")
    assert (outcome.code, outcome.rule) == (3, "file_too_large")
    assert types(outcome) == ["unreadable", "certificate", "certificate", "private_key"]


def test_a_missing_file_and_an_empty_directory_are_bad_input(tmp_path: Path) -> None:
    assert cli("inspect", tmp_path / "missing").rule == "file_missing"
    assert cli("inspect", tmp_path).rule == "nothing_to_inspect"


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda body: b"-----BEGIN CERTIFICATE-----\n" + body))
def test_no_bytes_make_it_fail_in_another_way(data: bytes) -> None:
    pieces = list(Reader(NOW).read(data))
    assert all(piece["type"] in ("unreadable", "other") for piece in pieces)
    assert json.dumps(pieces)


def test_names_in_a_certificate_cannot_drive_a_terminal(tmp_path: Path) -> None:
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", tmp_path / "k",
        "-out", tmp_path / "c", "-subj", "/CN=a\x1b]0;owned\x07b", "-utf8",
    )  # fmt: skip
    outcome = cli("inspect", tmp_path / "c")
    assert "\x1b" not in outcome.out
    assert "a\\x1b]0\\;owned\\x07b" in outcome.out
