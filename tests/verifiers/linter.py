"""pkilint on our certificates, and what of its findings docs/reference/linting.md explains."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from _environment import ROOT, VERIFIERS

EXPLANATIONS = ROOT / "docs" / "reference" / "linting.md"


@dataclass(frozen=True)
class Finding:
    severity: str
    code: str
    where: str
    message: str | None


def lint(chain: list[Path]) -> list[Finding]:
    """Findings of severity ERROR or FATAL on each certificate and on each pair; `chain` goes from leaf to root."""
    if not VERIFIERS.is_complete():
        pytest.skip("pkilint is not set up: scripts/test does that")
    alone = [finding for file in chain for finding in _findings("lint_pkix_cert", file)]
    pairs = ((issuer, subject) for subject, issuer in pairwise(chain))
    return alone + [finding for pair in pairs for finding in _findings("lint_pkix_signer_signee_cert_chain", *pair)]


def unexplained(findings: list[Finding]) -> list[Finding]:
    """Findings whose code has no row in the table of the explanations."""
    explained = re.findall(r"^\| `([^`]+)` \|", EXPLANATIONS.read_text(), re.MULTILINE)
    return [finding for finding in findings if finding.code not in explained]


def _findings(linter: str, *files: Path) -> Iterator[Finding]:
    options = ("-s", "ERROR", "-f", "JSON")
    command: list[str | Path] = [VERIFIERS.python, "-m", f"pkilint.bin.{linter}", "lint", *options, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout, done.stderr
    for result in json.loads(done.stdout)["results"]:
        for found in result["finding_descriptions"]:
            yield Finding(found["severity"], found["code"], result["node_path"], found["message"])
