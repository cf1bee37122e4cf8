"""Authorities and what they issued, for the tests of the command line to work on."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from citadel_py.store.ledger import SQLLedger
from tests.cli.support import Outcome, cli, openssl

GOLDEN = Path(__file__).parent / "golden"
UPDATE_GOLDEN = "CITADEL_UPDATE_GOLDEN"  # =1 writes the files anew: read the difference before you keep it


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [name for name in os.environ if name.startswith("CITADEL_") and name != UPDATE_GOLDEN]
    for name in (*ours, "NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="session")
def made_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority of example.org that nobody changes."""
    directory = tmp_path_factory.mktemp("authority") / "ca"
    assert cli("init", "--dir", directory, "--trust-domain", "example.org").code == 0
    SQLLedger.open(directory / "ledger.db", writer="test").close()  # its tables take longer to make than a certificate
    return directory


@pytest.fixture
def ca(made_authority: Path, tmp_path: Path) -> Path:
    """An authority of example.org, for this test alone."""
    return shutil.copytree(made_authority, tmp_path / "ca")


@pytest.fixture
def web(ca: Path, tmp_path: Path) -> Path:
    """What `issue` wrote for spiffe://example.org/web."""
    out = tmp_path / "web"
    assert cli("issue", "spiffe://example.org/web", "--dir", ca, "--out", out).code == 0
    return out


@pytest.fixture
def csr(tmp_path: Path) -> Path:
    """A CSR that openssl made, with its key beside it."""
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / "web.key")
    openssl("req", "-new", "-key", tmp_path / "web.key", "-subj", "/", "-out", tmp_path / "web.csr")
    return tmp_path / "web.csr"


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare text with a golden file; what differs from run to run has been replaced before."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if os.environ.get(UPDATE_GOLDEN) == "1":
            path.write_text(text)
        assert path.read_text() == text

    return compare


@pytest.fixture
def golden_run(golden: Callable[[str, str], None]) -> Callable[[str, Outcome], None]:
    """Compare all that a run left behind with a golden file; numbers that are random are replaced."""

    def compare(name: str, outcome: Outcome) -> None:
        text = f"exit {outcome.code}\n--- stdout\n{outcome.out}--- stderr\n{outcome.err}"
        golden(name, without_random_numbers(text))

    return compare


def without_random_numbers(text: str) -> str:
    """The text with every serial number, key id, hash and token replaced by its kind."""
    for pattern, instead in _RANDOM.items():
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text


_RANDOM = {
    r"\b[0-9a-f]{64}\b": "<sha256>",
    r"\b[0-9a-f]{40}\b": "<key id>",
    r"\b[0-9a-f]{20,32}\b": "<serial>",
    r"citadel-join-[\w-]{43}": "<token>",
    r"^[A-Za-z0-9+/]{20,}={0,2}\n": "",  # the body of PEM: its length differs from run to run
}
