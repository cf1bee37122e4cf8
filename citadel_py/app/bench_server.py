"""The `serve` that is measured: a process of its own on an authority of its own, on loopback, gone afterwards."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from citadel_py.app.bench_callers import AUDIENCE, ISSUER, TRUST_DOMAIN, TokenIssuer
from citadel_py.core import profile
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import CitadelError, Unavailable
from citadel_py.core.grants import PROBE_PATH
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType, generate_key
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.policy import Method
from citadel_py.core.profile import SERIAL_BYTES, Authority, Validity, serial_number
from citadel_py.core.spiffe import SpiffeID
from citadel_py.store import authority_dir
from citadel_py.store.ledger import SQLLedger

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below those that the system gives to clients
READY_WITHIN_S, STOPPED_WITHIN_S = 30.0, 30.0
_LOOK_EVERY_S = 0.02
_PROGRAM_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Target:
    """A certificate service that runs: its process, where it listens, and what its certificates are verified with."""

    pid: int
    address: str
    address_mtls: str
    bundle: Bundle


@dataclass
class Service:
    """Our own. `exit_code` is there once it has ended."""

    directory: Path
    issuer: Issuer
    target: Target = field(init=False)
    exit_code: int | None = None

    def recorded(self) -> list[str]:
        """Serials in its ledger, but for those of its own certificates. Raises LedgerUnavailable."""
        with SQLLedger.open(self.directory / authority_dir.LEDGER, writer="bench") as ledger:
            return [entry.serial for entry in ledger.entries() if not _is_its_own(entry)]

    def ledger_problem(self) -> str | None:
        """What is wrong with the hash chain, if anything."""
        try:
            with SQLLedger.open(self.directory / authority_dir.LEDGER, writer="bench") as ledger:
                ledger.verify()
        except CitadelError as error:
            return error.message
        return None


@contextmanager
def serving(
    directory: Path, key_type: KeyType, tokens: TokenIssuer, *, policy: str | None, now: datetime, workers: int = 1
) -> Iterator[Service]:
    """Run `serve` on a new authority in `directory`, with rules where some are given.

    Raises Unavailable where it does not become ready.
    """
    service = Service(directory, found(directory, key_type, now))
    jwks, config, log = directory / "jwks.json", directory / "none.toml", directory / "serve.log"
    jwks.write_bytes(tokens.jwks())
    config.touch()
    listen, listen_mtls, admin = free_addresses(3)
    command: list[str | Path] = [
        *(sys.executable, "-m", "citadel_py", "serve", "--dir", directory, "--config", config, "--log-format", "json"),
        *("--listen", listen, "--listen-mtls", listen_mtls, "--admin", admin, "--workers", str(workers)),
        *("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE, "--jwt-jwks", jwks),
    ]
    if policy is not None:
        (directory / "policy.toml").write_text(policy)
        command += ["--policy", directory / "policy.toml"]
    with log.open("wb") as output, child(command, directory, output) as process:
        _wait_until_ready(admin, process, log)
        service.target = Target(process.pid, listen, listen_mtls, service.issuer.bundle)
        yield service
        service.exit_code = _stop(process)


@contextmanager
def child(command: list[str | Path], directory: Path, output: int | object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block, with nothing of this process' own settings."""
    process = subprocess.Popen(  # noqa: S603 - commands of our own
        list(map(str, command)),
        cwd=directory,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,  # type: ignore[arg-type]  # a file, or a constant of subprocess
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def environment() -> dict[str, str]:
    """Of a child: this program, and no CITADEL_* setting of whoever runs the benchmark."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CITADEL_")}
    paths = [str(_PROGRAM_ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


def free_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody listens on now. Raises Unavailable."""
    found: dict[str, socket.socket] = {}
    try:
        for port in random.sample(PORTS, k=500):
            if len(found) == count:
                return list(found)
            try:
                found[f"{HOST}:{port}"] = socket.create_server((HOST, port))
            except OSError:
                continue
    finally:
        for each in found.values():
            each.close()
    raise Unavailable("there are no free ports on loopback", rule="bench_server_failed")


def found(directory: Path, key_type: KeyType, now: datetime) -> Issuer:
    """Write a new authority; what signs there, for certificates of callers."""
    now = now.replace(microsecond=0)  # certificates know whole seconds
    validity = Validity(now - timedelta(hours=1), now + timedelta(days=30))
    root_key, key = generate_key(key_type), generate_key(key_type)
    root = Authority(profile.root_certificate(root_key, TRUST_DOMAIN, validity, serial=_serial()), root_key)
    certificate = profile.intermediate_certificate(key.public_key(), TRUST_DOMAIN, root, validity, serial=_serial())
    intermediate, bundle = Authority(certificate, key), Bundle(TRUST_DOMAIN, (root.certificate,))
    authority_dir.create(directory, root=root, intermediate=intermediate, bundle=bundle, passphrase=None)
    return Issuer.activated(intermediate, (certificate,), bundle, now=now, serial=_serial())


def _is_its_own(entry: LedgerEntry) -> bool:
    """Its serving certificate, or what it asks itself for to see that it works."""
    return entry.method == Method.SELF or entry.spiffe_id == str(SpiffeID(TRUST_DOMAIN, PROBE_PATH))


def _serial() -> int:
    return serial_number(os.urandom(SERIAL_BYTES))


def _wait_until_ready(admin: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not _is_ready(admin):
        if process.poll() is not None or time.monotonic() > deadline:
            raise did_not_start(log)
        time.sleep(_LOOK_EVERY_S)


def did_not_start(log: Path) -> Unavailable:
    """With the end of what the server said."""
    end = log.read_text(errors="replace").strip().splitlines()[-3:]
    return Unavailable(f"the server to measure did not start: {'; '.join(end)[:1000]}", rule="bench_server_failed")


def _is_ready(admin: str) -> bool:
    connection = http.client.HTTPConnection(admin, timeout=2)
    try:
        connection.request("GET", "/readyz", headers={"Accept": "application/json"})
        page = json.load(connection.getresponse())
        workers = [problem for name, problem in page["degraded"].items() if name.startswith("worker ")]
        return bool(page["ready"]) and not any(workers)
    except OSError:
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> int | None:
    """Its exit code; None where it did not end in time, and `child` kills it."""
    process.terminate()
    try:
        return process.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        return None
