"""An agent's SVIDs on disk: kept as a set, and never a reason not to start."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from citadel_py.core.errors import InvalidConfiguration, InvalidKey, Unavailable
from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.core.ports import HeldSVID, SVIDStore
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.x509svid import X509SVID
from citadel_py.store import svids
from citadel_py.store.svids import SVIDFiles
from tests.store.things import WEB, Pki, new_held, ordinary_user

OTHER = SpiffeID.parse("spiffe://example.org/ns/default/sa/other")
PASSPHRASE = b"correct horse"
ENCRYPTED_KEY = private_key_pem(generate_key(KeyType.P256), PASSPHRASE).decode()


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def files(tmp_path: Path, reports: list[str]) -> SVIDFiles:
    return SVIDFiles(tmp_path / "state", report=reports.append)


@pytest.fixture
def held(pki: Pki) -> HeldSVID:
    return new_held(pki)


def same(one: HeldSVID | None, other: HeldSVID) -> bool:
    return (
        one is not None
        and private_key_pem(one.key) == private_key_pem(other.key)
        and (one.svid, one.bundle, one.issued_at, one.renew_at)
        == (other.svid, other.bundle, other.issued_at, other.renew_at)
    )


def test_it_is_what_the_port_asks_for(files: SVIDFiles) -> None:
    store: SVIDStore = files
    assert store.load(WEB) is None


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_what_was_saved_is_loaded_after_a_restart(tmp_path: Path, held: HeldSVID, passphrase: bytes | None) -> None:
    SVIDFiles(tmp_path, passphrase, report=pytest.fail).save(held)
    assert same(SVIDFiles(tmp_path, passphrase, report=pytest.fail).load(WEB), held)


def test_each_identity_has_its_own(files: SVIDFiles, pki: Pki, held: HeldSVID) -> None:
    other, newer = new_held(pki, OTHER), new_held(pki)
    for each in (held, other, newer):
        files.save(each)
    assert same(files.load(WEB), newer)
    assert same(files.load(OTHER), other)


def test_an_svid_that_has_expired_is_still_loaded(files: SVIDFiles, pki: Pki) -> None:
    expired = new_held(pki, ttl=timedelta(seconds=1))  # in the past of any clock
    files.save(expired)
    assert same(files.load(WEB), expired)


def test_files_are_private(files: SVIDFiles, held: HeldSVID) -> None:
    files.save(held)
    path = files.path(WEB)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(("given", "rule"), [(None, "key_passphrase_missing"), (b"wrong", "key_passphrase_wrong")])
def test_a_wrong_passphrase_is_an_error_and_the_file_stays(
    tmp_path: Path, held: HeldSVID, given: bytes | None, rule: str
) -> None:
    right = SVIDFiles(tmp_path, PASSPHRASE, report=pytest.fail)
    right.save(held)
    with pytest.raises(InvalidKey) as caught:
        SVIDFiles(tmp_path, given, report=pytest.fail).load(WEB)
    assert caught.value.rule == rule
    assert str(right.path(WEB)) in str(caught.value)
    assert "state_passphrase_file" in caught.value.hints[0]
    assert same(right.load(WEB), held)


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """A file whose digest is right although its content was changed: by another program, or a bug."""

    def rewrite(data: bytes) -> bytes:
        document = json.loads(data)
        change(document["svid"])
        document["sha256"] = svids.digest(document["svid"])
        return json.dumps(document).encode()

    return rewrite


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "garbage": lambda _: b"\xff\xfe\x00garbage",
    "truncated": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-3],
    "list": lambda _: b"[]",
    "deep": lambda _: b"[" * 100_000,
    "number": lambda _: b"5",
    "content is text": lambda data: json.dumps({**json.loads(data), "svid": "x"}).encode(),
    "edited": lambda data: data.replace(b"2026", b"2027", 1),
    "future version": lambda data: data.replace(b'"version": 1', b'"version": 3'),
    "sealed without a box": lambda data: data.replace(b'"version": 1', b'"version": 2'),
    "version is a list": lambda data: data.replace(b'"version": 1', b'"version": [1]'),
    "no key": rewritten(lambda svid: svid.pop("key")),
    "key is a number": rewritten(lambda svid: svid.update(key=5)),
    "key with a passphrase": rewritten(lambda svid: svid.update(key=ENCRYPTED_KEY)),
    "key is text": rewritten(lambda svid: svid.update(key="x")),
    "chain is text": rewritten(lambda svid: svid.update(chain="x")),
    "no bundle": rewritten(lambda svid: svid.pop("bundle")),
    "bundle is text": rewritten(lambda svid: svid.update(bundle="x")),
    "bundle is empty": rewritten(lambda svid: svid.update(bundle={"keys": []})),
    "no time": rewritten(lambda svid: svid.update(renew_at="soon")),
    "time without zone": rewritten(lambda svid: svid.update(issued_at="2026-01-01T00:00:00")),
    "another identity": rewritten(lambda svid: svid.update(spiffe_id=str(OTHER))),
    "too large": lambda data: data + b" " * (5 << 20),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_set_aside_reported_and_counts_as_none(
    files: SVIDFiles, held: HeldSVID, reports: list[str], damage: Callable[[bytes], bytes]
) -> None:
    files.save(held)
    path = files.path(WEB)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    assert files.load(WEB) is None
    aside = path.with_name(f"{path.name}.corrupt-1")
    assert aside.read_bytes() == damaged
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert len(reports) == 1
    assert reports[0].startswith(f"{path} was set aside as {aside.name}: ")
    assert "PRIVATE KEY" not in reports[0]
    assert "\n" not in reports[0]
    files.save(held)
    assert same(files.load(WEB), held)


def test_a_file_for_another_identity_under_our_name_is_set_aside(
    files: SVIDFiles, pki: Pki, reports: list[str]
) -> None:
    files.save(new_held(pki, OTHER))
    files.path(OTHER).rename(files.path(WEB))
    assert files.load(WEB) is None
    assert f"does not belong to {WEB}" in reports[0]


def test_a_certificate_for_another_identity_is_set_aside(
    files: SVIDFiles, pki: Pki, held: HeldSVID, reports: list[str]
) -> None:
    other = new_held(pki, OTHER)
    files.save(replace(held, svid=X509SVID(WEB, other.svid.chain), key=other.key))
    assert files.load(WEB) is None
    assert f"its certificate does not belong to {WEB}" in reports[0]


def test_a_key_that_does_not_belong_to_the_certificate_is_set_aside(
    files: SVIDFiles, pki: Pki, held: HeldSVID, reports: list[str]
) -> None:
    files.save(replace(held, key=new_held(pki).key))
    assert files.load(WEB) is None
    assert "its key does not belong to its certificate" in reports[0]


def test_a_file_that_others_could_read_is_set_aside(files: SVIDFiles, held: HeldSVID, reports: list[str]) -> None:
    """Its key may be known: the next one will not be."""
    files.save(held)
    files.path(WEB).chmod(0o644)
    assert files.load(WEB) is None
    assert "others can read" in reports[0]


def test_files_set_aside_are_numbered_and_bounded(files: SVIDFiles, reports: list[str]) -> None:
    path = files.path(WEB)
    for number in range(12):
        path.write_bytes(b"%d" % number)
        path.chmod(0o600)
        assert files.load(WEB) is None
    contents = sorted(each.read_bytes() for each in path.parent.iterdir())
    assert contents == sorted(b"%d" % number for number in (*range(8), 11))
    assert len(reports) == 12


def test_no_permission_is_unavailable_and_nothing_is_set_aside(
    open_to_nobody: Path, held: HeldSVID, reports: list[str]
) -> None:
    with ordinary_user():
        files = SVIDFiles(open_to_nobody, report=reports.append)
        files.save(held)
        files.path(WEB).chmod(0o000)
        with pytest.raises(Unavailable):
            files.load(WEB)
        files.path(WEB).chmod(0o600)
        open_to_nobody.chmod(0o500)
        with pytest.raises(Unavailable):
            files.save(held)
        assert same(files.load(WEB), held)
        open_to_nobody.chmod(0o700)
    assert reports == []


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, files: SVIDFiles, held: HeldSVID) -> None:
    files.save(held)
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(InvalidConfiguration):
        SVIDFiles(tmp_path / "state", report=pytest.fail)
    with pytest.raises(Unavailable) as caught:
        files.save(held)
    assert caught.value.rule == "directory_writable_by_others"


def test_a_directory_that_was_tidied_away_is_made_again(files: SVIDFiles, held: HeldSVID) -> None:
    files.path(WEB).parent.rmdir()
    assert files.load(WEB) is None
    files.save(held)
    assert same(files.load(WEB), held)


@pytest.mark.parametrize(
    "text", ["spiffe://example.org/" + "a" * 2000, "spiffe://example.org/.hidden/..x", "spiffe://example.org/A"]
)
def test_any_identity_has_a_file_name(files: SVIDFiles, pki: Pki, text: str) -> None:
    held = new_held(pki, SpiffeID.parse(text))
    files.save(held)
    assert same(files.load(held.svid.id), held)
    assert files.path(held.svid.id).parent == files.path(WEB).parent


def test_names_that_look_alike_have_different_files(files: SVIDFiles) -> None:
    texts = ["spiffe://example.org/a/b", "spiffe://example.org/a.b", "spiffe://example.com/a/b"]
    assert len({files.path(SpiffeID.parse(text)) for text in texts}) == 3
