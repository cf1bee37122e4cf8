"""The peers of bench_peers_run.py: how each is started, who may ask it for certificates, and with what client."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from citadel_py.app.bench_callers import AUDIENCE, ISSUER, LIFETIME, TRUST_DOMAIN, TokenIssuer, certificates
from citadel_py.app.bench_calls import Credential
from citadel_py.app.bench_load import TOKEN_CONNECTIONS
from citadel_py.app.bench_server import HOST, READY_WITHIN_S, Target, child, did_not_start, found, free_addresses
from citadel_py.app.runtime import utcnow
from citadel_py.core.bundle import Bundle
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType
from citadel_py.core.spiffe import SpiffeID

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / ".cache" / "peers" / "bin"
_LOOK_EVERY_S = 0.02
_PROVISIONER = "bench"
_ADMINISTRATOR = SpiffeID.mesh(TRUST_DOMAIN, "bench", "caller-0")  # as `certificates` names its first


class Tokens(Protocol):
    """Who signs the tokens of callers."""

    def credentials(self, count: int, *, now: datetime) -> list[Credential]:
        """So many tokens, of different callers."""
        ...


@dataclass(frozen=True)
class Peer:
    """Another authority. `client` is what Python runs to ask it, where it has another API than ours."""

    name: str
    start: Callable[[Path], AbstractContextManager[tuple[Target, Tokens]]] = field(repr=False)
    client: Sequence[str | Path] = ()
    asks_for: SpiffeID | None = None  # what a CSR must name, where it must


@contextmanager
def _istio(directory: Path, *, keys: str) -> Iterator[tuple[Target, Tokens]]:
    tokens, roots = TokenIssuer(), directory / "ca.crt"
    (directory / "jwks.json").write_bytes(tokens.jwks())
    (address,) = free_addresses(1)
    command: list[str | Path] = [
        *(PROGRAMS / "istio", "--listen", address, "--keys", keys, "--jwks", directory / "jwks.json"),
        *("--issuer", ISSUER, "--audience", AUDIENCE, "--trust-domain", TRUST_DOMAIN.name, "--dir", directory),
    ]
    with _running(command, directory, lambda: roots.exists() and roots.read_bytes().endswith(b"-----\n")) as pid:
        yield Target(pid, address, address, Bundle.from_pem(TRUST_DOMAIN, roots.read_bytes())), tokens


@contextmanager
def _step(directory: Path) -> Iterator[tuple[Target, Tokens]]:
    """step-ca on an authority like ours, with the store that `step ca init` gives it."""
    tokens, authority = _StepTokens(), directory / "ca"
    issuer = found(authority, KeyType.P256, utcnow())
    (address,) = free_addresses(1)
    configuration = {
        "root": str(authority / "ca.crt"),
        "crt": str(authority / "intermediate" / "tls.crt"),
        "key": str(authority / "intermediate" / "tls.key"),
        "address": address,
        "dnsNames": [HOST],
        "logger": {"format": "json"},
        "db": {"type": "badgerv2", "dataSource": str(directory / "db")},
        "authority": {"provisioners": [{"type": "JWK", "name": _PROVISIONER, "key": tokens.jwk()}]},
    }
    (directory / "ca.json").write_text(json.dumps(configuration))
    with _running([PROGRAMS / "stepca", directory / "ca.json"], directory, lambda: _listens(address)) as pid:
        yield Target(pid, address, address, issuer.bundle), tokens


@contextmanager
def _spire(directory: Path) -> Iterator[tuple[Target, Tokens]]:
    """SPIRE server below a root like ours, with SQLite and keys in memory."""
    authority, configuration = directory / "ca", directory / "server.json"
    issuer = found(authority, KeyType.P256, utcnow())
    (address,) = free_addresses(1)
    root = {"cert_file_path": str(authority / "root" / "tls.crt"), "key_file_path": str(authority / "root" / "tls.key")}
    store = {"database_type": "sqlite3", "connection_string": str(directory / "datastore.sqlite3")}
    server = {
        "bind_address": HOST,
        "bind_port": address.rpartition(":")[2],
        "socket_path": str(directory / "api.sock"),
        "trust_domain": TRUST_DOMAIN.name,
        "data_dir": str(directory),
        "ca_key_type": "ec-p256",
        "admin_ids": [str(_ADMINISTRATOR)],
    }
    plugins = {
        "DataStore": {"sql": {"plugin_data": store}},
        "NodeAttestor": {"join_token": {"plugin_data": {}}},
        "KeyManager": {"memory": {"plugin_data": {}}},
        "UpstreamAuthority": {"disk": {"plugin_data": root}},
    }
    configuration.write_text(json.dumps({"server": server, "plugins": plugins}))
    command: list[str | Path] = [PROGRAMS / "spire", "run", "-config", configuration]
    with _running(command, directory, lambda: _listens(address)) as pid:
        yield Target(pid, address, address, issuer.bundle), _Administrator(issuer)


@dataclass(frozen=True)
class _Administrator:
    """One caller, who may have everything, on as many connections as callers with tokens have."""

    issuer: Issuer

    def credentials(self, _count: int, *, now: datetime) -> list[Credential]:
        return TOKEN_CONNECTIONS * certificates(self.issuer, 1, now=now)


@dataclass(frozen=True)
class _StepTokens:
    """One-time tokens of a provisioner with a key: ES256, as step makes them."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)

    def jwk(self) -> dict[str, str]:
        member = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return {**member, "use": "sig", "alg": "ES256", "kid": _PROVISIONER}

    def credentials(self, count: int, *, now: datetime) -> list[Credential]:
        return [Credential(token=self._token(number, now)) for number in range(count)]

    def _token(self, number: int, now: datetime) -> str:
        id = f"spiffe://{TRUST_DOMAIN.name}/ns/bench/sa/caller-{number}"
        claims = {
            "iss": _PROVISIONER,
            "aud": f"https://{HOST}/1.0/sign",
            "sub": f"caller-{number}",
            "sans": [id],
            "jti": uuid4().hex,
            "iat": int(now.timestamp()),
            "nbf": int(now.timestamp()),
            "exp": int((now + LIFETIME).timestamp()),
        }
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"kid": _PROVISIONER})


@contextmanager
def _running(command: list[str | Path], directory: Path, is_ready: Callable[[], bool]) -> Iterator[int]:
    log = directory / "peer.log"
    with log.open("wb") as output, child(command, directory, output) as process:
        _wait(process, is_ready, log)
        yield process.pid


def _wait(process: subprocess.Popen[bytes], is_ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise did_not_start(log)
        time.sleep(_LOOK_EVERY_S)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


ISTIO_DEFAULT = Peer("Istio, RSA-2048 (its default)", partial(_istio, keys="rsa2048"))
ISTIO_P256 = Peer("Istio, P-256", partial(_istio, keys="p256"))
SPIRE = Peer(
    "SPIRE, P-256, with its store",
    _spire,
    client=(ROOT / "scripts" / "bench_peers_spire.py",),
    asks_for=SpiffeID.mesh(TRUST_DOMAIN, "bench", "minted"),
)
STEP = Peer("step-ca, P-256, with its store", _step, client=(ROOT / "scripts" / "bench_peers_step.py",))
