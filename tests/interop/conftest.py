"""The program as a user has it, for outside verifiers and clients: run as a process, known by its files and ports."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from _go import go_program

CITADEL = (sys.executable, "-m", "citadel_py")
# The settings of whoever runs the tests are none of theirs.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CITADEL_")}
TRUST_DOMAIN = "td.example"
READY_WITHIN_S = 20.0


def citadel(*arguments: str | Path) -> str:
    """Runs the program; its answer. It must succeed."""
    command = [*CITADEL, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Service:
    """A running `serve`; `directory` is its authority."""

    directory: Path
    listen: str
    listen_mtls: str

    @property
    def bundle(self) -> Path:
        return self.directory / "ca.crt"

    def token(self, spiffe_id: str, file: Path) -> Path:
        """A fresh one-time token for this identity, in `file`."""
        file.write_text(citadel("token", "create", spiffe_id, "--dir", self.directory))
        return file


@dataclass(frozen=True)
class Answer:
    """What the Go client printed."""

    code: str
    message: str
    cert_chain: list[str] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    trailers: dict[str, list[str]] = field(default_factory=dict)

    def detail(self, kind: str) -> dict[str, Any]:
        """The one error detail of this kind, as protobuf's JSON."""
        (found,) = (detail for detail in self.details if detail["@type"] == f"type.googleapis.com/google.rpc.{kind}")
        return found


GoClient = Callable[..., Answer]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service") / "ca"
    citadel("init", "--dir", directory, "--trust-domain", TRUST_DOMAIN)
    with _serving(directory) as service:
        yield service


@pytest.fixture(scope="session")
def go_client(service: Service) -> GoClient:
    """Calls CreateCertificate of the service; flags as keywords, with `_` for `-`."""
    program = go_program("createcertificate")
    if not program:
        pytest.skip("the Go programs are not built: scripts/test does that")

    def call(*, ca: str = service.listen, **flags: str | Path) -> Answer:
        given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        command: list[str | Path] = [program, f"--ca={ca}", f"--ca-bundle={service.bundle}", *given]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return Answer(**json.loads(done.stdout))

    return call


@contextmanager
def _serving(directory: Path) -> Iterator[Service]:
    listen, listen_mtls, admin = _free_addresses(3)
    addresses = ("--listen", listen, "--listen-mtls", listen_mtls, "--admin", admin)
    log = directory.parent / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*CITADEL, "serve", "--dir", str(directory), *addresses], stdout=output, stderr=output
        )
        try:
            _wait_until_ready(admin, process, log)
            yield Service(directory, listen, listen_mtls)
        finally:
            process.terminate()
            code = process.wait(timeout=30)
    assert code == 0, log.read_text()


def _wait_until_ready(admin: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not _is_ready(admin):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)  # between two looks at another process


def _is_ready(admin: str) -> bool:
    connection = http.client.HTTPConnection(admin, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _free_addresses(count: int) -> Sequence[str]:
    """Loopback addresses that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
    for server in sockets:
        server.close()
    return addresses
