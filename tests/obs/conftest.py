from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    """The events logged by the test, with the fields of the context they were logged in."""
    before = structlog.get_config()
    captured = structlog.testing.LogCapture()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, captured],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=False,
    )
    yield captured.entries
    structlog.configure(**before)
