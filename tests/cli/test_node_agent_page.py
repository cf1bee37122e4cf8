"""The how-to of an agent for a node: its policy says what the page says, and its settings can be used."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from citadel_py.config import load_agent
from citadel_py.core.spiffe import SpiffeID
from tests.cli.conftest import UPDATE_GOLDEN
from tests.cli.support import cli

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "node-agent.md"
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"(?<=^```console\n)\$ (.*?)\n.*?(?=^```$)", re.MULTILINE | re.DOTALL)


def test_it_shows_what_the_program_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text()
    Path("policy.toml").write_text(TOML.findall(page)[0])

    def run(block: re.Match[str]) -> str:
        outcome = cli(*shlex.split(block[1])[1:])
        return f"$ {block[1]}\n{outcome.out}{outcome.err}"

    real = CONSOLE.sub(run, page)
    if os.environ.get(UPDATE_GOLDEN) == "1":
        PAGE.write_text(real)
        page = real
    assert len(CONSOLE.findall(page)) == 3
    assert page == real


def test_its_settings_are_those_of_an_agent(tmp_path: Path) -> None:
    file = tmp_path / "citadel.toml"
    file.write_text(TOML.findall(PAGE.read_text())[1])
    settings = load_agent({}, file)
    assert settings.identities[0] == SpiffeID.parse("spiffe://example.org/node/one")
    assert len(settings.served) == 2
    assert len(settings.identities) == 3
