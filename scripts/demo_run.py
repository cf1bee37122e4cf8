"""The demo: a CA, two agents and two real Envoys talking mTLS, and certificates that renew under load.

`scripts/demo` sets up what it needs and becomes this. Everything lives in a temporary directory and
ends with it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from rich.console import Console

from demo_parts.children import Children, Failure
from demo_parts.history import History, Outcome
from demo_parts.load import Load
from demo_parts.mesh import TRUST_DOMAIN, TTL, Mesh, spiffe_id
from demo_parts.screen import State, screen
from demo_parts.watch import Outage, Stopwatch, Watch
from demo_parts.wire import Side

PASSED, NOT_SHOWN, BAD_CONFIGURATION, UNAVAILABLE, INTERRUPTED, NO_READER = 0, 1, 3, 4, 130, 141

_TICK_S = 0.5
_LAST_FIRST_RENEWAL_S = 45  # both proxies have renewed once by then
_OUTAGE_AFTER_S = 60.0

_EPILOG = f"""\
Certificates live {TTL}, so each proxy renews every 30 to 40 seconds. Each request makes a new
connection, and so a new handshake with whatever certificates are current.

exit codes:
  0    no request failed, and at least one renewal of each proxy was seen on the wire
  1    the run did not show that; the summary says why. Ctrl-C and SIGTERM end a run
       like --seconds does: with the summary, and 0 or 1
  2    wrong usage
  3    ENVOY_BIN names no Envoy
  4    a part did not start, or died; the end of its log is shown
  130  interrupted before the load began
  141  the reader of the output went away
"""


@dataclass(frozen=True)
class Options:
    """The command line."""

    envoy: Path
    seconds: float | None
    restart_ca: bool
    keep: bool


@dataclass
class Interruption:
    """SIGINT, SIGTERM and SIGHUP: the first asks for an orderly end, the second for a quick one."""

    children: Children
    requested: asyncio.Event = field(default_factory=asyncio.Event)

    def listen(self) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(each, self._on_signal)

    async def comes_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self.requested.wait()
        except TimeoutError:
            return False

    async def ends(self, work: Coroutine[object, object, None]) -> bool:
        """Do the work, or as much of it as there is time for; True if it was interrupted."""
        working, waiting = asyncio.create_task(work), asyncio.create_task(self.requested.wait())
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        is_interrupted = not working.done()
        working.cancel()
        waiting.cancel()
        await asyncio.wait((working, waiting))
        if not working.cancelled():
            working.result()
        return is_interrupted

    def _on_signal(self) -> None:
        if self.requested.is_set():
            self.children.kill_soon()
        self.requested.set()


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if not (options.envoy.is_file() and os.access(options.envoy, os.X_OK)):
        return fail(f"ENVOY_BIN names no program: {options.envoy}", "run scripts/demo", BAD_CONFIGURATION)
    try:
        with directory(keep=options.keep) as path:
            return asyncio.run(demo(options, path))
    except Failure as failure:
        hint = failure.hint or ("" if options.keep else "with --keep the whole logs stay")
        return fail(str(failure), hint, UNAVAILABLE)
    except KeyboardInterrupt:
        return fail("interrupted", "", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has no reader
        return NO_READER


def parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="A CA, two agents and two real Envoys that talk mTLS, and renew while requests pass.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seconds", type=_seconds, metavar="N", help="end after N seconds of load (default: Ctrl-C)")
    parser.add_argument("--restart-ca", action="store_true", help="kill the CA before a renewal, for 15 seconds")
    parser.add_argument("--keep", action="store_true", help="keep the directory with keys, configurations and logs")
    parsed = parser.parse_args(arguments)
    envoy = Path(os.environ.get("ENVOY_BIN") or "nothing")
    return Options(envoy=envoy, seconds=parsed.seconds, restart_ca=parsed.restart_ca, keep=parsed.keep)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError("it is not from 1 to 86400")
    return seconds


@contextmanager
def directory(*, keep: bool) -> Iterator[Path]:
    """A private directory for everything that the parts write."""
    path = Path(tempfile.mkdtemp(prefix="citadel-demo-"))
    try:
        yield path
    finally:
        if keep:
            say(f"kept: {path}")
        else:
            shutil.rmtree(path)


async def demo(options: Options, path: Path) -> int:
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as http, Children(path) as children:
        interruption = Interruption(children)
        interruption.listen()
        mesh = Mesh(children, options.envoy.absolute(), http)
        if await interruption.ends(set_up(mesh, options)):
            return fail("interrupted", "", INTERRUPTED)
        outcome = await run(mesh, options, interruption)
    return conclude(outcome)


async def set_up(mesh: Mesh, options: Options) -> None:
    say(f"citadel-py demo in {mesh.children.directory}")
    await mesh.found()
    say(f"  authority     root and intermediate of {TRUST_DOMAIN.id}")
    await mesh.start_ca()
    say(f"  CA            {mesh.ca_admin}/readyz?verbose")
    for side in Side:
        await mesh.start_agent(side)
        say(f"  {side} agent  {mesh.agent_admin(side)}/metrics  {spiffe_id(side)}, {TTL}")
    await mesh.start_envoys()
    for side in Side:
        say(f"  {side} Envoy  {mesh.envoys[side].admin}/certs")
    say(f"  requests      {mesh.url} -> client Envoy -> mTLS -> server Envoy")
    say(f"ends {f'after {options.seconds:.0f} s' if options.seconds else 'with Ctrl-C'}")
    if options.seconds and options.seconds < _LAST_FIRST_RENEWAL_S:
        say(f"note: it can take {_LAST_FIRST_RENEWAL_S} s until both have renewed; before that the exit code is 1")


async def run(mesh: Mesh, options: Options, interruption: Interruption) -> Outcome:
    history = History()
    watch = Watch(mesh, history, Stopwatch(), outage_of(mesh, history, options))
    async with Load(mesh.url, on_response=watch.on_response) as load:
        with screen(Console()) as show:
            while True:
                await watch.tick()
                show(State(watch.stopwatch.seconds, history, load))
                left_s = (options.seconds or math.inf) - watch.stopwatch.seconds
                if left_s <= 0 or await interruption.comes_within(min(_TICK_S, left_s)):
                    break
    return await judge(watch, load)


def outage_of(mesh: Mesh, history: History, options: Options) -> Outage | None:
    earliest_s = min(_OUTAGE_AFTER_S, (options.seconds or _OUTAGE_AFTER_S * 3) / 3)
    return Outage(mesh, history, earliest_s) if options.restart_ca else None


async def judge(watch: Watch, load: Load) -> Outcome:
    watch.mesh.children.check()
    return Outcome(
        seconds=watch.stopwatch.seconds,
        requests=load.requests,
        failures=load.failures,
        first_failure=next(iter(load.reasons), ""),
        slowest_s=load.slowest_s,
        handshakes=await watch.mesh.full_handshakes(),
        history=watch.history,
        is_outage_missing=watch.outage is not None and not watch.outage.is_over,
    )


def conclude(outcome: Outcome) -> int:
    for line in ("", *outcome.lines()):
        say(line)
    return NOT_SHOWN if any(outcome.complaints()) else PASSED


def say(line: str) -> None:
    print(line, flush=True)


def fail(message: str, hint: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
