from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def documented() -> Callable[[str], list[str]]:
    """The names in the first column of the tables of a page, without labels in braces."""

    def names(page: str) -> list[str]:
        text = (DOCS / page).read_text()
        return re.findall(r"^\| `([^`{]+)[^`]*` \|", text, re.MULTILINE)

    return names
