"""The authority's directory: what is in it, and what is refused when it is read."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import BadInput, CitadelError, InvalidBundle, InvalidConfiguration, InvalidKey, Unavailable
from citadel_py.core.keys import private_key_pem
from citadel_py.core.pem import certificate_pem, load_certificates
from citadel_py.core.profile import Authority
from citadel_py.core.spiffe import TrustDomain
from citadel_py.store.authority_dir import content_fingerprint, create, load
from citadel_py.store.files import lock_file
from citadel_py.store.keys import read_key
from tests.store.things import Pki, new_pki, ordinary_user

PASSPHRASE = b"correct horse"


def make(directory: Path, pki: Pki, **changes: object) -> Path:
    parts: dict[str, object] = {"root": pki.root, "intermediate": pki.intermediate, "bundle": pki.bundle}
    create(directory, **{"passphrase": None, **parts, **changes})  # type: ignore[arg-type]  # the tests name the parts
    return directory


@pytest.fixture
def directory(tmp_path: Path, pki: Pki) -> Path:
    """A complete authority without a passphrase."""
    return make(tmp_path / "ca", pki)


def refused(directory: Path, passphrase: bytes | None = None) -> CitadelError:
    with pytest.raises(BadInput) as caught:
        load(directory, passphrase=passphrase)
    return caught.value


def modes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode)
        for path in (directory, *directory.rglob("*"))
    }


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_layout_and_its_modes(tmp_path: Path, pki: Pki, umask: int) -> None:
    before = os.umask(umask)
    try:
        make(tmp_path / "ca", pki)
    finally:
        os.umask(before)
    assert modes(tmp_path / "ca") == {
        ".": 0o700,
        "ca.crt": 0o644,
        "bundle.json": 0o644,
        "root": 0o700,
        "root/tls.crt": 0o644,
        "root/tls.key": 0o600,
        "intermediate": 0o700,
        "intermediate/tls.crt": 0o644,
        "intermediate/tls.key": 0o600,
    }


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_what_was_created_is_loaded(tmp_path: Path, pki: Pki, passphrase: bytes | None) -> None:
    directory = make(tmp_path / "ca", pki, passphrase=passphrase)
    loaded = load(directory, passphrase=passphrase)
    assert loaded.trust_domain == TrustDomain("example.org")
    assert loaded.authority.certificate == pki.intermediate.certificate
    assert private_key_pem(loaded.authority.key) == private_key_pem(pki.intermediate.key)
    assert loaded.intermediates == (pki.intermediate.certificate,)
    assert loaded.bundle == pki.bundle
    assert read_key(directory / "root" / "tls.key", passphrase=passphrase).public_key() == pki.root.key.public_key()


def test_keys_are_encrypted_when_there_is_a_passphrase(tmp_path: Path, pki: Pki) -> None:
    directory = make(tmp_path / "ca", pki, passphrase=PASSPHRASE)
    for place in ("root", "intermediate"):
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in (directory / place / "tls.key").read_bytes()


@pytest.mark.parametrize(("given", "rule"), [(None, "key_passphrase_missing"), (b"wrong", "key_passphrase_wrong")])
def test_a_passphrase_that_is_missing_or_wrong(tmp_path: Path, pki: Pki, given: bytes | None, rule: str) -> None:
    directory = make(tmp_path / "ca", pki, passphrase=PASSPHRASE)
    error = refused(directory, given)
    assert isinstance(error, InvalidKey)
    assert error.rule == rule
    assert str(directory / "intermediate" / "tls.key") in error.message
    assert "--passphrase-file" in error.hints[0]
    assert "CITADEL_PASSPHRASE_FILE" in error.hints[0]


def test_an_offline_root_goes_elsewhere_with_its_key(tmp_path: Path, pki: Pki) -> None:
    offline = tmp_path / "stick" / "root"
    directory = make(tmp_path / "ca", pki, root_directory=offline)
    assert not (directory / "root" / "tls.key").exists()
    assert load_certificates((directory / "root" / "tls.crt").read_bytes()) == (pki.root.certificate,)
    assert modes(offline) == {".": 0o700, "tls.crt": 0o644, "tls.key": 0o600}
    assert read_key(offline / "tls.key", passphrase=None).public_key() == pki.root.key.public_key()
    assert load(directory, passphrase=None).bundle == pki.bundle


def test_an_imported_root_has_no_key_here(tmp_path: Path, pki: Pki) -> None:
    directory = make(tmp_path / "ca", pki, root=pki.root.certificate)
    assert [path.name for path in (directory / "root").iterdir()] == ["tls.crt"]
    assert load(directory, passphrase=None).bundle == pki.bundle


def test_the_root_is_not_needed_to_issue(directory: Path, pki: Pki) -> None:
    shutil.rmtree(directory / "root")
    assert load(directory, passphrase=None).authority.certificate == pki.intermediate.certificate


def test_an_authority_is_overwritten_by_force_only(directory: Path, pki: Pki) -> None:
    (directory / "ledger.db").write_bytes(b"the record stays")
    other = new_pki()
    with pytest.raises(InvalidConfiguration) as caught:
        make(directory, other)
    assert caught.value.rule == "authority_exists"
    assert load(directory, passphrase=None).authority.certificate == pki.intermediate.certificate
    make(directory, other, root=other.root.certificate, force=True)
    assert load(directory, passphrase=None).authority.certificate == other.intermediate.certificate
    assert not (directory / "root" / "tls.key").exists(), "the key of the old root would lie beside the new one"
    assert (directory / "ledger.db").read_bytes() == b"the record stays"


def test_a_directory_that_holds_other_files_keeps_them(tmp_path: Path, pki: Pki) -> None:
    for name in ("passphrase", ".other.tmp", ".tls.key.notes.tmp"):
        (tmp_path / name).write_bytes(b"mine")
    make(tmp_path, pki)
    for name in ("passphrase", ".other.tmp", ".tls.key.notes.tmp"):
        assert (tmp_path / name).read_bytes() == b"mine"


def test_the_key_of_another_root_is_not_overwritten(tmp_path: Path, pki: Pki) -> None:
    offline = tmp_path / "offline"
    make(tmp_path / "one", pki, root_directory=offline)
    key = (offline / "tls.key").read_bytes()
    with pytest.raises(InvalidConfiguration) as caught:
        make(tmp_path / "two", new_pki(), root_directory=offline)
    assert caught.value.rule == "root_key_exists"
    assert (offline / "tls.key").read_bytes() == key


def test_two_at_once_do_not_mix(tmp_path: Path, pki: Pki) -> None:
    (tmp_path / "ca").mkdir()
    with lock_file(tmp_path / "ca"), pytest.raises(Unavailable) as caught:
        make(tmp_path / "ca", pki)
    assert caught.value.rule == "locked_by_another"
    make(tmp_path / "ca", pki)


def test_where_no_authority_is_the_hint_makes_one(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        error = refused(directory)
        assert error.rule == "authority_missing"
        assert f"citadel-py init --dir {directory}" in error.hints[0]


@pytest.mark.parametrize("name", ["ca.crt", "bundle.json", "intermediate/tls.crt", "intermediate/tls.key"])
def test_a_missing_file_is_named_and_the_rest_is_not_overwritten(directory: Path, pki: Pki, name: str) -> None:
    (directory / name).unlink()
    error = refused(directory)
    assert error.rule == "authority_damaged"
    assert error.message == f"{directory / name} is missing"
    with pytest.raises(InvalidConfiguration) as caught:
        make(directory, pki)
    assert caught.value.rule in ("authority_damaged", "authority_exists")


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(directory: Path, mode: int) -> None:
    (directory / "intermediate" / "tls.key").chmod(mode)
    error = refused(directory)
    assert error.rule == "key_readable_by_others"
    assert error.hints[0] == f"chmod 600 {directory / 'intermediate' / 'tls.key'}"


def test_a_key_of_another_certificate_is_refused(directory: Path, pki: Pki) -> None:
    (directory / "intermediate" / "tls.key").write_bytes(private_key_pem(pki.root.key))
    assert refused(directory).rule == "authority_key_mismatch"


def write_bundle(directory: Path, bundle: Bundle, *names: str) -> None:
    contents = {"ca.crt": bundle.to_pem(), "bundle.json": bundle.to_jwks()}
    for name in names:
        (directory / name).write_bytes(contents[name])


@pytest.mark.parametrize("name", ["ca.crt", "bundle.json"])
def test_two_bundles_that_differ_are_refused(directory: Path, pki: Pki, name: str) -> None:
    other = new_pki().root.certificate
    write_bundle(directory, pki.bundle.with_authorities([*pki.bundle.authorities, other]), name)
    assert refused(directory).rule == "bundle_files_differ"


def test_the_sequence_is_that_of_the_json(directory: Path, pki: Pki) -> None:
    write_bundle(directory, replace(pki.bundle, sequence=41), "bundle.json")
    assert load(directory, passphrase=None).bundle.sequence == 41


def test_a_bundle_of_another_trust_domain_is_refused(directory: Path) -> None:
    write_bundle(directory, new_pki("other.org").bundle, "ca.crt", "bundle.json")
    assert refused(directory).rule == "trust_domain_mismatch"


def test_an_intermediate_that_names_no_trust_domain_is_refused(directory: Path, svid_pem: bytes) -> None:
    (directory / "intermediate" / "tls.crt").write_bytes(svid_pem)
    assert refused(directory).rule == "authority_spiffe_id"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("bundle.json", "json_unreadable"),
        ("ca.crt", "certificates_missing"),
        ("intermediate/tls.crt", "certificates_missing"),
        ("intermediate/tls.key", "key_unreadable"),
    ],
)
@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\xff\x00" * 10])
def test_garbage_is_refused_with_an_error_of_ours(directory: Path, name: str, rule: str, garbage: bytes) -> None:
    (directory / name).write_bytes(garbage)
    assert refused(directory).rule in (rule, "certificates_nul")


def test_a_file_that_never_ends_is_not_read_to_its_end(directory: Path) -> None:
    (directory / "bundle.json").unlink()
    (directory / "bundle.json").symlink_to("/dev/zero")
    assert refused(directory).rule == "file_too_large"


def test_a_directory_that_may_not_be_entered_is_not_taken_for_empty(open_to_nobody: Path) -> None:
    directory = open_to_nobody / "ca"
    directory.mkdir(mode=0o000)
    with ordinary_user():
        assert refused(directory).rule == "file_not_readable"


CHANGES: dict[str, Callable[[Path], object]] = {
    "bundle": lambda directory: (directory / "bundle.json").write_bytes(b"{}"),
    "pem": lambda directory: (directory / "ca.crt").write_bytes(b""),
    "chain": lambda directory: (directory / "intermediate" / "tls.crt").write_bytes(b"x"),
    "key": lambda directory: (directory / "intermediate" / "tls.key").write_bytes(b"x"),
    "removed": lambda directory: (directory / "intermediate" / "tls.key").unlink(),
    "moved": lambda directory: (directory / "ca.crt").rename(directory / "intermediate" / "tls.crt"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_fingerprint_changes_with_the_content(directory: Path, change: Callable[[Path], object]) -> None:
    before = content_fingerprint(directory)
    change(directory)
    changed = content_fingerprint(directory)
    assert changed != before
    assert content_fingerprint(directory) == changed


def test_the_fingerprint_does_not_change_with_anything_else(directory: Path, tmp_path: Path) -> None:
    before = content_fingerprint(directory)
    for path in directory.rglob("*"):
        os.utime(path, (1, 1))
    (directory / "ledger.db").write_bytes(b"another certificate")
    assert content_fingerprint(directory) == before
    assert content_fingerprint(Path(shutil.copytree(directory, tmp_path / "copy"))) == before


def test_an_authority_of_two_certificates_is_loaded_in_order(directory: Path, pki: Pki) -> None:
    """An imported chain: the signing intermediate stands under another one."""
    upper = new_pki().intermediate.certificate
    path = directory / "intermediate" / "tls.crt"
    path.write_bytes(path.read_bytes() + certificate_pem(upper))
    loaded = load(directory, passphrase=None)
    assert loaded.intermediates == (pki.intermediate.certificate, upper)
    assert loaded.authority == Authority(pki.intermediate.certificate, loaded.authority.key)


def test_bundle_errors_are_bundle_errors(directory: Path) -> None:
    (directory / "bundle.json").write_bytes(b'{"keys": []}')
    assert isinstance(refused(directory), InvalidBundle)
