"""`bench`: certificates per second and CPU time per certificate of a real `serve`, on this machine.

Each cell runs on a server, an authority and a ledger of its own, and a load from another process.
What counts is the CPU time of the server's processes: unlike time, it does not depend on how fast
the client is. A number is worth something only where the run was valid; see bench_checks.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import product
from pathlib import Path

from citadel_py.app.bench_callers import (
    NODES_ASK_FOR_OTHERS,
    STREAM_USES,
    USES,
    SentCSRs,
    TokenIssuer,
    certificates,
    csrs,
)
from citadel_py.app.bench_calls import NEW, STREAM, WARM, Credential, Load, Outcome
from citadel_py.app.bench_checks import problems_of_answers, problems_of_ledger
from citadel_py.app.bench_client import Driven, drive
from citadel_py.app.bench_server import Service, Target, serving
from citadel_py.app.runtime import utcnow
from citadel_py.core.keys import KeyType

MOST = 100_000  # certificates of one cell
LONGEST = timedelta(minutes=10)
_PER_SECOND = 1_500  # so many are made ready for each second


class Connections(StrEnum):
    """How calls get to the server."""

    WARM = WARM
    NEW = NEW
    STREAM = STREAM


class Auth(StrEnum):
    """How callers show who they are: a token seen for the first time, one seen before, a client certificate."""

    JWT = "jwt"
    JWT_CACHED = "jwt-cached"
    MTLS = "mtls"


@dataclass(frozen=True, slots=True)
class Keys:
    """Kinds of keys: of the callers, and of the authority that signs."""

    leaf: KeyType = KeyType.P256
    authority: KeyType = KeyType.P256

    def __str__(self) -> str:
        return f"{self.leaf}/{self.authority}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the matrix."""

    keys: Keys = Keys()
    connections: Connections = Connections.WARM
    auth: Auth = Auth.JWT
    in_flight: int = 16

    def __str__(self) -> str:
        return f"{self.keys} {self.connections} {self.auth} {self.in_flight} in flight"


@dataclass(frozen=True, slots=True)
class Amount:
    """When a cell ends: after so many certificates, or so much time, whichever is first."""

    count: int = MOST
    time: timedelta = LONGEST

    @property
    def most(self) -> int:
        """How many certificates are made ready for."""
        return min(self.count, math.ceil(self.time.total_seconds() * _PER_SECOND), MOST)


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one cell. `problems` say why the numbers are worth nothing, where they are."""

    cell: Cell
    certificates: int
    seconds: float
    cpu_s: float
    p50_s: float
    p99_s: float
    rss_bytes: int
    problems: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        return not self.problems

    @property
    def per_second(self) -> float:
        return self.certificates / self.seconds if self.seconds else 0.0

    @property
    def cpu_us(self) -> float:
        """CPU time of the server per certificate."""
        return self.cpu_s * 1e6 / self.certificates if self.certificates else 0.0


def matrix(
    keys: Sequence[Keys], auth: Sequence[Auth], connections: Sequence[Connections], in_flight: Sequence[int]
) -> list[Cell]:
    """All combinations, in this order."""
    return [
        Cell(keys=k, auth=a, connections=c, in_flight=n) for k, a, c, n in product(keys, auth, connections, in_flight)
    ]


def measure(
    cell: Cell, amount: Amount, *, place: Path | None = None, tokens: TokenIssuer | None = None, workers: int = 1
) -> Result:
    """Measure one cell in a new directory below `place`, which is gone afterwards.

    `tokens` may be another issuer than the one that the server trusts; `workers` is the server's
    setting. Raises Unavailable where the server or the client cannot be run.
    """
    sent, trusted = csrs(cell.keys.leaf), TokenIssuer()
    with tempfile.TemporaryDirectory(prefix="citadel-bench-", dir=place) as name:
        directory = Path(name)
        running = serving(
            directory / "ca", cell.keys.authority, trusted, policy=_policy(cell), now=utcnow(), workers=workers
        )
        with running as service:
            credentials = _credentials(cell, amount, service, tokens or trusted)
            driven = drive(load_for(cell, amount, sent, credentials, target=service.target), service.target, directory)
        return result(cell, driven, tuple(_problems(driven.outcome, service, sent)))


def result(cell: Cell, driven: Driven, problems: tuple[str, ...]) -> Result:
    """The numbers of a run."""
    outcome = driven.outcome
    return Result(
        cell=cell,
        certificates=len(outcome.latencies_s),
        seconds=outcome.seconds,
        cpu_s=driven.cpu_s,
        p50_s=_percentile(outcome.latencies_s, 50),
        p99_s=_percentile(outcome.latencies_s, 99),
        rss_bytes=driven.rss_bytes,
        problems=problems,
    )


def load_for(cell: Cell, amount: Amount, sent: SentCSRs, credentials: Sequence[Credential], *, target: Target) -> Load:
    """The load of a cell on a server."""
    return Load(
        address=target.address_mtls if cell.auth is Auth.MTLS else target.address,
        roots=target.bundle.to_pem().decode(),
        csrs=sent.pems,
        credentials=credentials,
        in_flight=cell.in_flight,
        connections=cell.connections.value,
        count=amount.most,
        seconds=amount.time.total_seconds(),
    )


def callers(cell: Cell, amount: Amount) -> int:
    """How many different ones there are: one for each call, or few enough that they come again."""
    calls = amount.most + cell.in_flight  # the first ones are to warm up
    if cell.connections is Connections.STREAM:
        return math.ceil(calls / STREAM_USES)
    if cell.auth is Auth.JWT:
        return calls
    return max(2 * cell.in_flight, math.ceil(calls / USES))


def _policy(cell: Cell) -> str | None:
    """A file of rules, where the defaults are not enough: callers on a stream ask for others."""
    return NODES_ASK_FOR_OTHERS if cell.connections is Connections.STREAM else None


def _credentials(cell: Cell, amount: Amount, service: Service, tokens: TokenIssuer) -> list[Credential]:
    count = callers(cell, amount)
    if cell.auth is Auth.MTLS:
        return certificates(service.issuer, count, now=utcnow())
    return tokens.credentials(count, now=utcnow())


def _problems(outcome: Outcome, service: Service, sent: SentCSRs) -> Iterator[str]:
    yield from problems_of_answers(outcome, sent, service.target.bundle, now=utcnow())
    if service.exit_code != 0:
        yield f"the server ended with {service.exit_code}"
    yield from problems_of_ledger(outcome, service.recorded())
    if wrong := service.ledger_problem():
        yield f"the ledger does not verify: {wrong}"


def _percentile(ascending: Sequence[float], percent: int) -> float:
    """The nearest rank; 0 where there is nothing."""
    return ascending[math.ceil(len(ascending) * percent / 100) - 1] if ascending else 0.0
