"""The service beside other authorities: the same load, in turns, and the ratio of what a certificate costs.

`scripts/bench-peers` sets up what it needs and becomes this. The answer is a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from bench_peers_servers import ISTIO_DEFAULT, ISTIO_P256, ROOT, SPIRE, STEP, Peer
from citadel_py.app.bench import Amount, Auth, Cell, Connections, Keys, Result, callers, load_for, measure, result
from citadel_py.app.bench_callers import csrs
from citadel_py.app.bench_checks import problems_of_answers
from citadel_py.app.bench_client import CLIENT, drive
from citadel_py.app.runtime import utcnow
from citadel_py.core.errors import CitadelError
from citadel_py.core.keys import KeyType

NOT_VALID, UNAVAILABLE, INTERRUPTED = 1, 4, 130
ROUNDS, SECONDS = 7, 2


@dataclass(frozen=True)
class Comparison:
    """One row: our cell, and the peer that gets the same calls, where it has no stream over warm connections."""

    ours: Cell
    peer: Peer
    theirs: Connections | None = None

    @property
    def peers_cell(self) -> Cell:
        return replace(self.ours, connections=self.theirs or self.ours.connections)


RSA, RSA_3072, P256 = Keys(KeyType.RSA2048), Keys(KeyType.RSA2048, KeyType.RSA3072), Keys()
COMPARISONS = (
    Comparison(Cell(RSA, Connections.WARM, in_flight=16), ISTIO_DEFAULT),
    Comparison(Cell(RSA, Connections.NEW, in_flight=16), ISTIO_DEFAULT),
    Comparison(Cell(RSA, Connections.STREAM, in_flight=16), ISTIO_DEFAULT, theirs=Connections.WARM),
    Comparison(Cell(RSA_3072, Connections.WARM, in_flight=16), ISTIO_DEFAULT),
    Comparison(Cell(P256, Connections.WARM, in_flight=1), ISTIO_P256),
    Comparison(Cell(P256, Connections.WARM, in_flight=16), ISTIO_P256),
    Comparison(Cell(P256, Connections.WARM, in_flight=64), ISTIO_P256),
    Comparison(Cell(P256, Connections.NEW, in_flight=16), ISTIO_P256),
    Comparison(Cell(P256, Connections.STREAM, in_flight=16), ISTIO_P256, theirs=Connections.WARM),
    Comparison(Cell(P256, Connections.STREAM, in_flight=64), ISTIO_P256, theirs=Connections.WARM),
    Comparison(Cell(P256, Connections.WARM, in_flight=16), STEP),
    Comparison(Cell(P256, Connections.NEW, in_flight=16), STEP),
    Comparison(Cell(P256, Connections.STREAM, in_flight=16), STEP, theirs=Connections.WARM),
    Comparison(Cell(P256, Connections.WARM, Auth.MTLS, in_flight=16), SPIRE),
    Comparison(Cell(P256, Connections.NEW, Auth.MTLS, in_flight=16), SPIRE),
    Comparison(Cell(P256, Connections.STREAM, Auth.MTLS, in_flight=16), SPIRE, theirs=Connections.WARM),
)


@dataclass
class Pairs:
    """Results of one comparison, of ours and of the peer's in the same round."""

    found: list[tuple[Result, Result]] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Certificates for the same CPU time, ours to the peer's: above 1 is good."""
        return [peer.cpu_us / ours.cpu_us for ours, peer in self.found]


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    amount = Amount(time=timedelta(seconds=options.seconds))
    wanted = [each for each in COMPARISONS if options.only in f"{each.peer.name} {each.ours}"]
    pairs = {each: Pairs() for each in wanted}
    try:
        for number in range(1, options.rounds + 1):
            for comparison in wanted:
                pair = _pair(comparison, amount, options.dir, peer_first=number % 2 == 0)
                if problems := _problems(comparison, pair):
                    print(*problems, sep="\n", file=sys.stderr)
                    return NOT_VALID
                pairs[comparison].found.append(pair)
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    except CitadelError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return UNAVAILABLE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    print(_report(pairs, options))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench-peers", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=_number(100), default=ROUNDS, help=f"rounds in turns (default {ROUNDS})")
    parser.add_argument("--seconds", type=_number(60), default=SECONDS, help=f"of each run (default {SECONDS})")
    parser.add_argument("--only", metavar="TEXT", default="", help="only comparisons with this in their names")
    parser.add_argument("--dir", metavar="D", type=Path, help="where ledgers are: the disk that is measured")
    return parser.parse_args(arguments)


def _number(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not 1 <= (value := int(text)) <= most:
            raise argparse.ArgumentTypeError(f"not from 1 to {most}")
        return value

    return number


def _pair(comparison: Comparison, amount: Amount, place: Path | None, *, peer_first: bool) -> tuple[Result, Result]:
    """One run each. Who is first changes from round to round."""
    if peer_first:
        peer = _measure_peer(comparison, amount, place)
        return measure(comparison.ours, amount, place=place), peer
    return measure(comparison.ours, amount, place=place), _measure_peer(comparison, amount, place)


def _measure_peer(comparison: Comparison, amount: Amount, place: Path | None) -> Result:
    cell, peer = comparison.peers_cell, comparison.peer
    sent = csrs(cell.keys.leaf, peer.asks_for)
    with tempfile.TemporaryDirectory(prefix="citadel-bench-", dir=place) as name:
        directory = Path(name)
        with peer.start(directory) as (target, tokens):
            credentials = tokens.credentials(callers(cell, amount), now=utcnow())
            load = load_for(cell, amount, sent, credentials, target=target)
            driven = drive(load, target, directory, program=peer.client or CLIENT)
        problems = problems_of_answers(driven.outcome, sent, target.bundle, now=utcnow())
        return result(cell, driven, tuple(problems))


def _problems(comparison: Comparison, pair: tuple[Result, Result]) -> list[str]:
    names = (f"ours, {comparison.ours}", f"{comparison.peer.name}, {comparison.ours}")
    return [f"not valid: {name}: {each}" for name, found in zip(names, pair, strict=True) for each in found.problems]


def _report(pairs: dict[Comparison, Pairs], options: argparse.Namespace) -> str:
    command = f"scripts/bench-peers --rounds {options.rounds} --seconds {options.seconds}"
    lines = [
        f"`{command}`: {os.cpu_count()} processors, CPython {platform.python_version()}, {_versions()}.",
        "",
        "| peer | our keys | connections | in flight | CPU us/cert, ours | peer's | ratio: median | range |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(comparison, found) for comparison, found in pairs.items()),
    ]
    return "\n".join(lines)


def _line(comparison: Comparison, pairs: Pairs) -> str:
    ours = statistics.median(each.cpu_us for each, _ in pairs.found)
    peer = statistics.median(each.cpu_us for _, each in pairs.found)
    ratio, cell = statistics.median(pairs.ratios), comparison.ours
    shown = f"**{ratio:.2f}**" if ratio >= 1 else f"{ratio:.2f} (loses)"
    spread = f"{min(pairs.ratios):.2f} to {max(pairs.ratios):.2f}"
    way = f"{cell.connections}; theirs {comparison.theirs}" if comparison.theirs else str(cell.connections)
    cells = (comparison.peer.name, cell.keys, way, cell.in_flight, f"{ours:.0f}", f"{peer:.0f}", shown)
    return f"| {' | '.join(map(str, cells))} | {spread} |"


def _versions() -> str:
    """Of the peers, as their modules name them."""
    modules = {
        "Istio": ("istio", "istio.io/istio"),
        "step-ca": ("stepca", "github.com/smallstep/certificates"),
        "SPIRE": ("spire", "github.com/spiffe/spire"),
    }
    texts = {name: (ROOT / "scripts" / "peers" / place / "go.mod").read_text() for name, (place, _) in modules.items()}
    found = {name: re.search(rf"{re.escape(modules[name][1])} (v\S+)", text) for name, text in texts.items()}
    return ", ".join(f"{name} {version[1]}" for name, version in found.items() if version)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
