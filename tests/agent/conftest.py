"""A whole CA service on loopback, and a client of it as an agent has one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.typing import EventDict

from tests.agent.support import Agent
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
async def agent(world: World) -> AsyncIterator[Agent]:
    agent = Agent(world)
    yield agent
    await agent.close()


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events
