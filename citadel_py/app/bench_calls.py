"""What `bench` and its client tell each other: a load, what came of it, and what a connection is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from typing import Protocol, TypeAlias

READY, GO = "ready", "go"
WARM, NEW, STREAM = "warm", "new", "stream"
CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Credential:
    """Who a caller is: a bearer token, or a certificate with its key (PEM)."""

    token: str = field(default="", repr=False)
    chain: str = ""
    key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask for, and how. It ends after `count` calls or `seconds`, whichever is first.

    Call number n uses CSR n and credential n of those that are there, from the first again after the last.
    """

    address: str
    roots: str
    csrs: Sequence[str]
    credentials: Sequence[Credential] = field(repr=False)
    in_flight: int
    connections: str
    count: int
    seconds: float

    @classmethod
    def from_json(cls, text: str) -> Load:
        value = json.loads(text)
        return cls(**{**value, "credentials": [Credential(**each) for each in value["credentials"]]})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: the certificates without the bundle at their end, and the number of the CSR that was sent."""

    csr: int
    chain: Sequence[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a load. `serials` are those of all answers, hex; the first `warm_up` of them came before `go`."""

    seconds: float
    latencies_s: Sequence[float]
    serials: Sequence[str]
    warm_up: int
    failures: int
    first_failure: str
    samples: Sequence[Sample]

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        value = json.loads(text)
        return cls(**{**value, "samples": [Sample(**each) for each in value["samples"]]})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class CallFailed(Exception):
    """A call that brought no certificate, and why."""


class Connection(Protocol):
    """A connection to a certificate service."""

    async def ask(self, csr: str, credential: Credential) -> Sequence[str]:
        """Certificates, PEM: the leaf, those above it, and last the bundle. Raises CallFailed."""
        ...


Connect: TypeAlias = Callable[[Load, Credential], AbstractAsyncContextManager[Connection]]
