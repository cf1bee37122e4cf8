"""What other processes do to a ledger, run as `python -m tests.store.other_process JOB PATH ...`.

Each says `ready`, waits for a line on stdin so that all begin together, and prints what it did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from citadel_py.core.errors import Unauthenticated
from citadel_py.store.ledger import SQLLedger
from tests.store.things import NOW, entry

PATIENCE = timedelta(seconds=60)


def append(path: Path, writer: str, first: str, count: str) -> None:
    """Append entries one by one and in threes; print each number once it is durable."""
    with SQLLedger.open(path, writer=writer, busy_timeout=PATIENCE) as ledger:
        number, end = int(first), int(first) + int(count)
        while number < end:
            size = min(1 + 2 * (number % 2), end - number)
            ledger.append([entry(each) for each in range(number, number + size)])
            for each in range(number, number + size):
                sys.stdout.write(f"{each}\n")
            sys.stdout.flush()
            number += size


def redeem(path: Path, count: str) -> None:
    """Try every token; print the numbers of those that were won."""
    with SQLLedger.open(path, writer="redeemer", busy_timeout=PATIENCE) as ledger:
        for number in range(int(count)):
            try:
                ledger.redeem(number.to_bytes(32, "big"), now=NOW)
            except Unauthenticated:
                continue
            sys.stdout.write(f"{number}\n")


def main(job: str, path: str, *arguments: str) -> None:
    jobs: dict[str, Callable[..., None]] = {"append": append, "redeem": redeem}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    jobs[job](Path(path), *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
