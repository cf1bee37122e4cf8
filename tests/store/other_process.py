"""What other processes do to a ledger, run as `python -m tests.store.other_process JOB URL ...`.

Each says `ready`, waits for a line on stdin so that all begin together, and prints what it did.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from citadel_py.core.errors import LedgerUnavailable, Unauthenticated
from citadel_py.core.ledger_heads import Seal
from citadel_py.core.profile import Authority, Validity, root_certificate
from citadel_py.core.spiffe import TrustDomain
from citadel_py.store.ledger import SQLLedger
from tests.store.things import NOW, entry

PATIENCE = timedelta(seconds=60)


def shared_seal() -> Seal:
    """The same key in every process of a test."""
    key = ec.derive_private_key(0x5EED, ec.SECP256R1())
    start = NOW.replace(microsecond=0)
    validity = Validity(start, start + timedelta(days=1))
    return Seal.of(Authority(root_certificate(key, TrustDomain("example.org"), validity, serial=1 << 100), key))


def open_ledger(url: str, writer: str) -> SQLLedger:
    seal = shared_seal()
    place = url if "://" in url else Path(url)
    return SQLLedger.open(place, writer=writer, busy_timeout=PATIENCE, seal=lambda: seal)


def say(numbers: range) -> None:
    """In one write, so that whoever is killed says all or nothing."""
    sys.stdout.write("".join(f"{number}\n" for number in numbers))
    sys.stdout.flush()


def append(url: str, writer: str, first: str, count: str) -> None:
    """Append entries one by one and in threes; print each number once it is durable."""
    with open_ledger(url, writer) as ledger:
        number, end = int(first), int(first) + int(count)
        while number < end:
            group = range(number, min(number + 1 + 2 * (number % 2), end))
            ledger.append([entry(each) for each in group])
            say(group)
            number = group.stop


def append_and_sign(url: str, writer: str, first: str) -> None:
    """Append until killed, in groups of many sizes, and sign now and then. What fails is not tried again."""
    seal, ledger, number = shared_seal(), open_ledger(url, writer), int(first)
    for turn in itertools.count():
        group = range(number, number + 1 + turn % 7)
        number = group.stop
        try:
            ledger.append([entry(each) for each in group])
            say(group)
            if turn % 5 == 0:
                ledger.sign(seal)
        except LedgerUnavailable:
            continue


def redeem(url: str, count: str) -> None:
    """Try every token; print the numbers of those that were won."""
    with open_ledger(url, "redeemer") as ledger:
        for number in range(int(count)):
            try:
                ledger.redeem(number.to_bytes(32, "big"), now=NOW)
            except Unauthenticated:
                continue
            sys.stdout.write(f"{number}\n")


def offspring() -> None:
    """For each line on stdin a process that does `append_and_sign` with its words: its id, its numbers, `gone`."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            append_and_sign(*line.split())
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        os.waitpid(child, 0)
        sys.stdout.write("gone\n")
        sys.stdout.flush()


def main(job: str, *arguments: str) -> None:
    jobs: dict[str, Callable[..., None]] = {"append": append, "redeem": redeem, "offspring": offspring}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if job != "offspring":
        sys.stdin.readline()
    jobs[job](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
