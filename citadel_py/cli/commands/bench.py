"""`bench`: what a certificate costs on this machine, as a table or as JSON. What is measured is app.bench's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session, is_terminal
from citadel_py.core.errors import BadInput

if TYPE_CHECKING:
    from citadel_py.app.bench import Amount, Auth, Connections, Keys, Result

Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=StrEnum)

_MOST_IN_FLIGHT = 256  # streams of one connection
_DEFAULT_SECONDS = 3
_HEADINGS = ("keys", "connections", "auth", "in flight", "cert/s", "CPU us/cert", "p50 ms", "p99 ms", "RSS MiB")
_WORDS = 3  # columns that are not numbers


class InvalidBench(BadInput):
    """A value of the matrix that there is not."""

    code = "invalid_bench"


def _several(parse: Callable[[str], Value]) -> params.Parsed[tuple[Value, ...]]:
    """Values with commas between them, each once."""
    return params.Parsed("LIST", lambda text: tuple(dict.fromkeys(parse(each.strip()) for each in text.split(","))))


def _parse_in_flight(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= _MOST_IN_FLIGHT):
        raise InvalidBench(f"{text[:40]!a} is no number from 1 to {_MOST_IN_FLIGHT}")
    return int(text)


def _parse_keys(text: str) -> Keys:
    from citadel_py.app.bench import Keys
    from citadel_py.core.keys import AUTHORITY_KEY_TYPES, KeyType

    leaf, _, authority = text.partition("/")
    return Keys(_one_of(list(KeyType), leaf), _one_of(AUTHORITY_KEY_TYPES, authority or KeyType.P256))


def _parse_connections(text: str) -> Connections:
    from citadel_py.app.bench import Connections

    return _one_of(list(Connections), text)


def _parse_auth(text: str) -> Auth:
    from citadel_py.app.bench import Auth

    return _one_of(list(Auth), text)


def _one_of(choices: Sequence[Choice], text: str) -> Choice:
    for each in choices:
        if each == text:
            return each
    raise InvalidBench(f"{text[:40]!a} is none of {', '.join(choices)}")


@frame.command(
    "bench",
    examples=[
        "citadel-py bench",
        "citadel-py bench --seconds 10 --in-flight 16 --keys p256,rsa2048 --auth jwt,mtls",
        "citadel-py bench --count 1000 --connections new --dir /srv --json",
    ],
    codes=[Exit.UNAVAILABLE],
    meanings={
        Exit.DONE: "measured, and every run was valid",
        Exit.NO: "a run was not valid: its numbers are worth nothing, and the reason is told",
    },
)
@click.option(
    "--seconds",
    metavar="N",
    type=click.IntRange(1, 600),
    help=f"Seconds of each run.  [default: {_DEFAULT_SECONDS}]",
)
@click.option("--count", metavar="N", type=click.IntRange(1, 100_000), help="Certificates of each run, instead.")
@click.option(
    "--in-flight", type=_several(_parse_in_flight), default="1,16,64", show_default=True, help="Calls at once."
)
@click.option(
    "--keys",
    type=_several(_parse_keys),
    default="p256",
    show_default=True,
    help="Kinds of keys: of callers (rsa2048), or of callers and authority (rsa2048/rsa3072).",
)
@click.option(
    "--connections",
    type=_several(_parse_connections),
    default="warm,new",
    show_default=True,
    help="warm; new: a TLS connection for each certificate; stream: many on one batch stream.",
)
@click.option(
    "--auth",
    type=_several(_parse_auth),
    default="jwt",
    show_default=True,
    help="jwt (a new token each), jwt-cached (seen before), mtls.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 128),
    default=1,
    show_default=True,
    help="Processes of the service, as in serve --workers.",
)
@click.option(
    "--dir",
    "directory",
    metavar="D",
    type=click.Path(path_type=Path),
    help="Where its temporary files are: the ledger's disk.  [default: the system's place for them]",
)
@options.as_json
@click.pass_obj
def command(
    session: Session, /, *, seconds: int | None, count: int | None, workers: int, directory: Path | None, as_json: bool,
    keys: tuple[Keys, ...], auth: tuple[Auth, ...], connections: tuple[Connections, ...], in_flight: tuple[int, ...],
) -> int:  # fmt: skip
    """Measure certificates per second, and CPU time per certificate.

    Each run starts a real service on loopback, with an authority and a durable ledger of its own, and
    a client in another process. CPU time is that of the service, user and system. A run is valid
    only if no call failed, sampled chains verify, no serial number came twice, and the ledger holds
    exactly what was answered.
    """
    from citadel_py.app.bench import matrix

    amount = _amount(seconds, count)
    results = list(_measured(matrix(keys, auth, connections, in_flight), amount, directory, workers))
    if as_json:
        session.answer_json({"workers": workers, **_document(results)})
    else:
        _show(session, results)
    for each in results:
        for problem in each.problems:
            session.warn(f"not valid: {each.cell}: {problem}")
    return Exit.DONE if all(each.is_valid for each in results) else Exit.NO


def _amount(seconds: int | None, count: int | None) -> Amount:
    from citadel_py.app.bench import Amount

    if seconds is not None and count is not None:
        raise click.UsageError("--seconds and --count exclude each other")
    if count is not None:
        return Amount(count=count)
    return Amount(time=timedelta(seconds=seconds or _DEFAULT_SECONDS))


def _measured(cells: Sequence[Any], amount: Amount, directory: Path | None, workers: int) -> Iterator[Result]:
    from citadel_py.app.bench import measure
    from citadel_py.cli.progress import working

    for number, cell in enumerate(cells, start=1):
        with working(f"{number} of {len(cells)}: {cell}"):
            yield measure(cell, amount, place=directory, workers=workers)


def _document(results: Sequence[Result]) -> dict[str, Any]:
    import os
    import platform

    return {
        "is_valid": all(each.is_valid for each in results),
        "machine": {"processors": os.cpu_count(), "python": platform.python_version()},
        "results": [
            {
                "keys": {"leaf": each.cell.keys.leaf, "authority": each.cell.keys.authority},
                "connections": each.cell.connections,
                "auth": each.cell.auth,
                "in_flight": each.cell.in_flight,
                "certificates": each.certificates,
                "seconds": each.seconds,
                "certificates_per_second": each.per_second,
                "cpu_microseconds_per_certificate": each.cpu_us,
                "p50_seconds": each.p50_s,
                "p99_seconds": each.p99_s,
                "rss_bytes": each.rss_bytes,
                "is_valid": each.is_valid,
                "problems": list(each.problems),
            }
            for each in results
        ],
    }


def _row(result: Result) -> tuple[str, ...]:
    cell = result.cell
    numbers = (
        f"{result.per_second:.0f}",
        f"{result.cpu_us:.0f}",
        f"{result.p50_s * 1000:.1f}",
        f"{result.p99_s * 1000:.1f}",
        f"{result.rss_bytes / (1 << 20):.0f}",
    )
    shown = numbers if result.is_valid else tuple("not valid" if n == 0 else "" for n in range(len(numbers)))
    return (str(cell.keys), cell.connections, cell.auth, str(cell.in_flight), *shown)


def _show(session: Session, results: Sequence[Result]) -> None:
    rows = [_row(each) for each in results]
    if is_terminal(sys.stdout):
        _show_table(session, rows)
        return
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    for row in (_HEADINGS, *rows):
        session.answer("  ".join(_aligned(row, widths)).rstrip() + "\n")


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for column, (text, width) in enumerate(zip(row, widths, strict=True)):
        yield text.ljust(width) if column < _WORDS else text.rjust(width)


def _show_table(session: Session, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if column < _WORDS else "right")
    for row in rows:
        table.add_row(*row)
    Console(no_color=session.color is False).print(table)
