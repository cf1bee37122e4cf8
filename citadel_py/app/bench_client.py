"""A load against a server: runs the client process beside it and reads what the server used meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from citadel_py.app import bench_load
from citadel_py.app.bench_calls import CALL_TIMEOUT_S, GO, READY, Load, Outcome
from citadel_py.app.bench_proc import usage
from citadel_py.app.bench_server import Target, environment
from citadel_py.core.errors import Unavailable

CLIENT = ("-m", bench_load.__name__)
_AROUND_S = 120.0  # to get ready, and to tell what came of it


@dataclass(frozen=True, slots=True)
class Driven:
    """What came of a load, and what the server's processes used from its beginning to its end."""

    outcome: Outcome
    cpu_s: float
    rss_bytes: int


def drive(load: Load, target: Target, directory: Path, *, program: Sequence[str | Path] = CLIENT) -> Driven:
    """Run a load against a server that runs. Raises Unavailable where the client dies or hangs.

    `program` is what Python runs as the client; it speaks as bench_load does.
    """
    log = directory / "client.log"
    try:
        with _client(load, program, log) as client:
            if _line(client).strip() != READY:
                raise _died(log)
            before = usage(target.pid)
            _say(client, GO)
            answer = _line(client)
            after = usage(target.pid)
    except BrokenPipeError as error:
        raise _died(log) from error
    if not answer:
        raise _died(log)
    return Driven(Outcome.from_json(answer), after.cpu_s - before.cpu_s, after.rss_bytes)


@contextmanager
def _client(load: Load, program: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[str]]:
    """The process, with its load; killed when it takes longer than it may."""
    with (
        log.open("wb") as errors,
        subprocess.Popen(  # noqa: S603 - a module of our own
            [sys.executable, *program],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        patience = threading.Timer(load.seconds + CALL_TIMEOUT_S + _AROUND_S, process.kill)
        patience.start()
        try:
            _say(process, load.to_json())
            yield process
        finally:
            patience.cancel()
            process.kill()


def _line(client: subprocess.Popen[str]) -> str:
    return client.stdout.readline() if client.stdout else ""


def _say(client: subprocess.Popen[str], text: str) -> None:
    if client.stdin:
        client.stdin.write(f"{text}\n")
        client.stdin.flush()


def _died(log: Path) -> Unavailable:
    end = log.read_text(errors="replace").strip().splitlines()[-1:]
    return Unavailable(f"the load client of the benchmark died: {' '.join(end)[:500]}", rule="bench_client_failed")
