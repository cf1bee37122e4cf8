"""An agent's SVIDs on disk with a passphrase: nothing to read, nothing to exchange, one derivation for all."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from citadel_py.core.errors import InvalidKey
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.store import sealing, svids
from citadel_py.store.svids import SVIDFiles
from tests.store.crashing import before_step
from tests.store.test_svids import OTHER, PASSPHRASE, same
from tests.store.things import WEB, Pki, new_held


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def files(tmp_path: Path, reports: list[str]) -> SVIDFiles:
    return SVIDFiles(tmp_path, PASSPHRASE, report=reports.append)


@pytest.fixture
def held(pki: Pki) -> HeldSVID:
    return new_held(pki)


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The salts for which the slow function was called."""
    salts: list[bytes] = []

    def counting(*, salt: bytes, length: int, n: int, r: int, p: int) -> Scrypt:
        salts.append(salt)
        return Scrypt(salt=salt, length=length, n=n, r=r, p=p)

    monkeypatch.setattr(sealing, "Scrypt", counting)
    return salts


def box_of(path: Path) -> dict[str, Any]:
    box: dict[str, Any] = json.loads(path.read_bytes())["sealed"]
    return box


def test_nothing_of_an_svid_can_be_read_in_its_file(files: SVIDFiles, held: HeldSVID) -> None:
    files.save(held)
    text = files.path(WEB).read_text()
    assert stat.S_IMODE(files.path(WEB).stat().st_mode) == 0o600
    for secret in ("PRIVATE KEY", "CERTIFICATE", "spiffe://", "keys"):
        assert secret not in text


def test_no_two_files_have_one_nonce(files: SVIDFiles, held: HeldSVID) -> None:
    nonces = set()
    for _ in range(20):
        files.save(held)
        nonces.add(box_of(files.path(WEB))["nonce"])
    assert len(nonces) == 20


def test_a_process_derives_one_key_for_all_files_also_those_of_before_a_restart(
    tmp_path: Path, pki: Pki, derivations: list[bytes]
) -> None:
    ids = [SpiffeID.parse(f"spiffe://example.org/{number}") for number in range(8)]
    first = SVIDFiles(tmp_path, PASSPHRASE, report=pytest.fail)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(first.save, [new_held(pki, id) for id in ids]))
    assert len(derivations) == 1
    second = SVIDFiles(tmp_path, PASSPHRASE, report=pytest.fail)
    for id in ids:
        again = second.load(id)
        assert again is not None
        second.save(again)
    assert len(derivations) == 2
    assert len(set(derivations)) == 1


def test_a_plain_file_is_encrypted_when_it_is_read(tmp_path: Path, held: HeldSVID, files: SVIDFiles) -> None:
    SVIDFiles(tmp_path, report=pytest.fail).save(held)
    assert same(files.load(WEB), held)
    assert "PRIVATE KEY" not in files.path(WEB).read_text()
    assert same(files.load(WEB), held)


def test_a_plain_file_is_of_use_where_nothing_can_be_written(tmp_path: Path, held: HeldSVID, files: SVIDFiles) -> None:
    SVIDFiles(tmp_path, report=pytest.fail).save(held)

    def no_room() -> None:
        raise OSError(28, "No space left on device")

    with before_step(3, no_room):  # the new file
        assert same(files.load(WEB), held)
    assert "PRIVATE KEY" in files.path(WEB).read_text()


def resealed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """As somebody changes it who can mend the digest."""

    def rewrite(data: bytes) -> bytes:
        document = json.loads(data)
        change(document["sealed"])
        document["sha256"] = svids.digest(document["sealed"])
        return json.dumps(document).encode()

    return rewrite


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "a salt that was not mended": lambda data: data.replace(b'"salt": "', b'"salt": "0'),
    "another check that was not mended": lambda data: data.replace(b'"check": "', b'"check": "00'),
    "first version": lambda data: data.replace(b'"version": 2', b'"version": 1'),
    "another nonce": resealed(lambda box: box.update(nonce="00" * 12)),
    "short nonce": resealed(lambda box: box.update(nonce="00")),
    "a bit": resealed(lambda box: box.update(sealed="AAAA" + box["sealed"][4:])),
    "no base64": resealed(lambda box: box.update(sealed="?")),
    "no hex": resealed(lambda box: box.update(salt="salt")),
    "a number": resealed(lambda box: box.update(sealed=5)),
    "no salt": resealed(lambda box: box.pop("salt")),
    "long salt": resealed(lambda box: box.update(salt="00" * 64)),
    "another function": resealed(lambda box: box.update(kdf="rot13")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_set_aside_and_no_wrong_passphrase(
    files: SVIDFiles, held: HeldSVID, reports: list[str], damage: Callable[[bytes], bytes]
) -> None:
    files.save(held)
    path = files.path(WEB)
    path.write_bytes(damage(path.read_bytes()))
    assert files.load(WEB) is None
    assert f"was set aside as {path.name}.corrupt-1" in reports[0]


def test_a_file_of_another_identity_is_set_aside(files: SVIDFiles, pki: Pki, reports: list[str]) -> None:
    files.save(new_held(pki, OTHER))
    files.path(OTHER).rename(files.path(WEB))
    assert files.load(WEB) is None
    assert "belongs to another file" in reports[0]


def test_a_wrong_passphrase_sets_nothing_aside_whatever_else_is_there(
    files: SVIDFiles, tmp_path: Path, pki: Pki
) -> None:
    for id in (WEB, OTHER):
        files.save(new_held(pki, id))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for id in (WEB, OTHER):
        with pytest.raises(InvalidKey):
            SVIDFiles(tmp_path, b"wrong", report=pytest.fail).load(id)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
