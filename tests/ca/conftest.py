"""The world in which the certificate service is tested."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.typing import EventDict

from tests.ca.support import World


@pytest.fixture(scope="session")
def token_key() -> rsa.RSAPrivateKey:
    """The key of the token issuer: made once, for RSA keys take their time."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
async def world(tmp_path: Path, token_key: rsa.RSAPrivateKey) -> AsyncIterator[World]:
    async with World(tmp_path, token_key).running() as world:
        yield world


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    """The events of this test; RPC lines with their request ids."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        yield events
