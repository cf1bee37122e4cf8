"""`init`: what is made, with which modes, encrypted or not, and what is never overwritten."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from citadel_py.core.keys import check_authority_key, load_private_key
from citadel_py.core.pem import load_certificates
from citadel_py.core.profile import INTERMEDIATE_LIFETIME, ROOT_LIFETIME
from tests.cli.support import NOW, Golden, Outcome, cli, mode_of, openssl

PASSPHRASE = b"correct horse"


@pytest.fixture
def passphrase_file(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + b"\n")
    path.chmod(0o600)
    return path


def init(directory: Path, *more: object, **options: Any) -> Outcome:
    return cli("init", "--dir", directory, "--trust-domain", "example.org", *more, **options)


def check_opens(path: Path, passphrase: bytes | None) -> None:
    """A key that opens with this passphrase, and is encrypted if there is one."""
    pem = path.read_bytes()
    assert (b"ENCRYPTED" in pem) == (passphrase is not None)
    check_authority_key(load_private_key(pem, passphrase))


def certificate(path: Path) -> x509.Certificate:
    return load_certificates(path.read_bytes())[0]


def issues(directory: Path, *more: object) -> Outcome:
    """Whether an authority works: it issues, and openssl agrees."""
    out = directory.parent / "workload"
    outcome = cli("issue", "spiffe://example.org/web", "--dir", directory, "--out", out, *more)
    if outcome.code == 0:
        moment = str(int(NOW.timestamp()))
        files = ("-CAfile", out / "ca.crt", "-untrusted", out / "tls.crt", out / "tls.crt")
        openssl("verify", "-x509_strict", "-attime", moment, *files)
    return outcome


def test_the_directory_holds_a_working_authority(tmp_path: Path) -> None:
    assert init(tmp_path / "ca").code == 0
    assert issues(tmp_path / "ca").code == 0


def test_keys_are_0600_in_0700_directories(tmp_path: Path) -> None:
    init(tmp_path / "new" / "ca")
    ca = tmp_path / "new" / "ca"
    assert [mode_of(ca / name) for name in (".", "root", "intermediate")] == [0o700] * 3
    assert [mode_of(ca / name) for name in ("root/tls.key", "intermediate/tls.key")] == [0o600] * 2


@pytest.mark.parametrize("key_type", ["p384", "rsa3072"])
def test_key_type_holds_for_both_keys(tmp_path: Path, key_type: str) -> None:
    assert init(tmp_path / "ca", "--key-type", key_type).code == 0
    sizes = [certificate(tmp_path / "ca" / name).public_key() for name in ("ca.crt", "intermediate/tls.crt")]
    assert [key.key_size for key in sizes] == [int(re.sub(r"\D", "", key_type))] * 2  # type: ignore[union-attr]  # EC or RSA
    assert issues(tmp_path / "ca").code == 0


def test_lifetimes_are_those_that_the_help_states(tmp_path: Path) -> None:
    init(tmp_path / "ca")
    moment = NOW.replace(microsecond=0)
    assert certificate(tmp_path / "ca/ca.crt").not_valid_after_utc == moment + timedelta(days=3650)
    assert certificate(tmp_path / "ca/intermediate/tls.crt").not_valid_after_utc == moment + timedelta(days=365)
    assert (ROOT_LIFETIME.days, INTERMEDIATE_LIFETIME.days) == (3650, 365)


def test_lifetimes_can_be_chosen(tmp_path: Path) -> None:
    init(tmp_path / "ca", "--root-lifetime", "20d", "--intermediate-lifetime", "10d")
    moment = NOW.replace(microsecond=0)
    assert certificate(tmp_path / "ca/ca.crt").not_valid_after_utc == moment + timedelta(days=20)
    assert certificate(tmp_path / "ca/intermediate/tls.crt").not_valid_after_utc == moment + timedelta(days=10)


def test_an_intermediate_that_would_outlive_its_root_is_refused(tmp_path: Path) -> None:
    outcome = init(tmp_path / "ca", "--root-lifetime", "10d")
    assert (outcome.code, outcome.rule) == (3, "authority_outlives_parent")
    assert not (tmp_path / "ca").exists()


@pytest.mark.parametrize("name", ["Example.org", "a..b", "", "a b"])
def test_a_trust_domain_that_cannot_work_is_refused(tmp_path: Path, name: str) -> None:
    outcome = cli("init", "--dir", tmp_path / "ca", "--trust-domain", name)
    assert outcome.code == 3
    assert outcome.rule
    assert not (tmp_path / "ca").exists()


def test_without_a_terminal_and_a_source_keys_are_plain_and_a_note_says_so(tmp_path: Path) -> None:
    outcome = init(tmp_path / "ca")
    assert "note: the authority's keys are not encrypted" in outcome.err
    assert "not encrypted" not in outcome.out.splitlines()[0]
    check_opens(tmp_path / "ca/root/tls.key", None)


def test_a_passphrase_file_encrypts_both_keys_without_its_newline(tmp_path: Path, passphrase_file: Path) -> None:
    outcome = init(tmp_path / "ca", "--passphrase-file", passphrase_file)
    assert (outcome.code, outcome.err.count("hint:")) == (0, 1)
    for name in ("root/tls.key", "intermediate/tls.key"):
        check_opens(tmp_path / "ca" / name, PASSPHRASE)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_passphrase_may_come_from_stdin(tmp_path: Path, ending: bytes) -> None:
    assert init(tmp_path / "ca", "--passphrase-file", "-", stdin=PASSPHRASE + ending).code == 0
    check_opens(tmp_path / "ca/root/tls.key", PASSPHRASE)


def test_a_passphrase_may_come_by_the_environment(
    tmp_path: Path, passphrase_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITADEL_PASSPHRASE_FILE", str(passphrase_file))
    monkeypatch.setenv("CITADEL_DIR", str(tmp_path / "ca"))
    assert cli("init", "--trust-domain", "example.org").code == 0
    check_opens(tmp_path / "ca/root/tls.key", PASSPHRASE)


def test_an_empty_passphrase_file_is_refused(tmp_path: Path) -> None:
    outcome = init(tmp_path / "ca", "--passphrase-file", "-", stdin=b"\n")
    assert (outcome.code, outcome.rule) == (3, "passphrase_empty")


def test_a_passphrase_file_that_others_may_read_is_warned_about(tmp_path: Path, passphrase_file: Path) -> None:
    passphrase_file.chmod(0o644)
    outcome = init(tmp_path / "ca", "--passphrase-file", passphrase_file)
    assert outcome.code == 0
    assert f"hint: chmod 600 {passphrase_file}" in outcome.err


@pytest.mark.parametrize("more", [(), ("--key-type", "p384")])
def test_an_authority_is_never_overwritten_without_force(ca: Path, more: tuple[str, ...]) -> None:
    before = (ca / "root/tls.key").read_bytes()
    outcome = init(ca, *more)
    assert (outcome.code, outcome.rule) == (3, "authority_exists")
    assert (ca / "root/tls.key").read_bytes() == before


def test_force_makes_a_new_authority(ca: Path) -> None:
    before = (ca / "root/tls.key").read_bytes()
    assert init(ca, "--force").code == 0
    assert (ca / "root/tls.key").read_bytes() != before
    assert issues(ca).code == 0


def test_an_offline_root_leaves_no_root_key_in_the_directory(tmp_path: Path) -> None:
    ca, away = tmp_path / "ca", tmp_path / "usb"
    assert init(ca, "--offline-root", away).code == 0
    assert not (ca / "root/tls.key").exists()
    assert (mode_of(away / "tls.key"), mode_of(away)) == (0o600, 0o700)
    assert certificate(away / "tls.crt") == certificate(ca / "ca.crt")
    assert issues(ca).code == 0


# A root that is brought along


@pytest.fixture
def corporate(tmp_path: Path) -> Path:
    """A root as openssl makes one, encrypted, of 30 days."""
    place = tmp_path / "corporate"
    place.mkdir()
    key, crt = place / "root.key", place / "root.crt"
    openssl("ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", place / "plain.key")
    openssl("pkcs8", "-topk8", "-in", place / "plain.key", "-passout", "pass:hush", "-out", key)
    extensions = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(
        "req", "-x509", "-key", place / "plain.key", "-subj", "/CN=Corporate", "-days", 30, "-out", crt, *extensions
    )
    (place / "phrase").write_text("hush")
    for path in place.iterdir():
        path.chmod(0o600)
    return place


def init_under(corporate: Path, directory: Path, *more: object, now: datetime | None = None) -> Outcome:
    phrase = ("--import-root-passphrase-file", corporate / "phrase")
    root = ("--import-root", corporate / "root.crt", "--import-root-key", corporate / "root.key")
    return init(directory, *root, *phrase, *more, now=now or datetime.now(UTC))


def test_an_imported_root_signs_the_intermediate_and_its_key_is_not_copied(corporate: Path, tmp_path: Path) -> None:
    assert init_under(corporate, tmp_path / "ca").code == 0
    assert not (tmp_path / "ca/root/tls.key").exists()
    root, intermediate = certificate(tmp_path / "ca/ca.crt"), certificate(tmp_path / "ca/intermediate/tls.crt")
    assert root == certificate(corporate / "root.crt")
    intermediate.verify_directly_issued_by(root)


def test_the_intermediate_ends_with_an_imported_root(corporate: Path, tmp_path: Path) -> None:
    init_under(corporate, tmp_path / "ca")
    root, intermediate = certificate(tmp_path / "ca/ca.crt"), certificate(tmp_path / "ca/intermediate/tls.crt")
    assert intermediate.not_valid_after_utc == root.not_valid_after_utc
    assert intermediate.not_valid_before_utc >= root.not_valid_before_utc


def test_an_expired_root_is_refused(corporate: Path, tmp_path: Path) -> None:
    outcome = init_under(corporate, tmp_path / "ca", now=datetime.now(UTC) + timedelta(days=31))
    assert (outcome.code, outcome.rule) == (3, "imported_root_not_valid_now")


def test_a_root_with_another_key_is_refused(corporate: Path, tmp_path: Path) -> None:
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", corporate / "root.key")
    outcome = init_under(corporate, tmp_path / "ca")
    assert (outcome.code, outcome.rule) == (3, "imported_root_key_mismatch")


def test_a_root_key_that_others_may_read_is_refused(corporate: Path, tmp_path: Path) -> None:
    (corporate / "root.key").chmod(0o644)
    outcome = init_under(corporate, tmp_path / "ca")
    assert (outcome.code, outcome.rule) == (3, "key_readable_by_others")
    assert not (tmp_path / "ca").exists()


def test_an_intermediate_is_no_root(ca: Path, tmp_path: Path) -> None:
    source = ("--import-root", ca / "intermediate/tls.crt", "--import-root-key", ca / "intermediate/tls.key")
    outcome = init(tmp_path / "other", *source)
    assert (outcome.code, outcome.rule) == (3, "imported_root_not_self_signed")


def test_a_root_of_another_trust_domain_is_refused(ca: Path, tmp_path: Path) -> None:
    source = ("--import-root", ca / "ca.crt", "--import-root-key", ca / "root/tls.key")
    outcome = cli("init", "--dir", tmp_path / "other", "--trust-domain", "other.org", *source)
    assert (outcome.code, outcome.rule) == (3, "imported_root_trust_domain")


@pytest.mark.parametrize(
    "extensions",
    ["basicConstraints=critical,CA:FALSE", "basicConstraints=critical,CA:TRUE,pathlen:0"],
    ids=["no CA", "no room below"],
)
def test_a_root_that_cannot_have_an_intermediate_is_refused(corporate: Path, tmp_path: Path, extensions: str) -> None:
    openssl(
        "req", "-x509", "-key", corporate / "plain.key", "-subj", "/CN=C", "-days", 30, "-out", corporate / "root.crt",
        "-addext", extensions,
    )  # fmt: skip
    outcome = init_under(corporate, tmp_path / "ca")
    assert outcome.code == 3
    assert outcome.rule in ("bundle_not_ca", "authority_unusable")
    assert not (tmp_path / "ca").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--import-root", "x"),
        ("--import-root-key", "x"),
        ("--import-root-passphrase-file", "x"),
        ("--import-root", "x", "--import-root-key", "y", "--offline-root", "z"),
        ("--import-root", "x", "--import-root-key", "y", "--root-lifetime", "1d"),
    ],
    ids=" ".join,
)
def test_flags_that_contradict_are_a_usage_error(tmp_path: Path, flags: tuple[str, ...]) -> None:
    assert init(tmp_path / "ca", *flags).code == 2


def test_answer_of_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_run: Golden) -> None:
    monkeypatch.chdir(tmp_path)
    golden_run("init", init(Path("ca")))
