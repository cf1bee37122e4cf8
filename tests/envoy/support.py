"""What tests with real Envoys share: an authority in this process, a careless SDS server, plain TLS clients."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from google.protobuf.any_pb2 import Any as Packed

from citadel_py._proto.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from citadel_py._proto.envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from citadel_py.agent.envoy_bootstrap import (
    CERTIFICATE_FILE,
    LISTENER,
    TRUST_FILE,
    certificate_file,
    client_bootstrap,
    server_bootstrap,
    trust_file,
)
from citadel_py.agent.envoy_proxy import ClientProxy, RemoteAgent, ServerProxy
from citadel_py.config import Address
from citadel_py.core import profile
from citadel_py.core.bundle import Bundle
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType, generate_key, private_key_pem
from citadel_py.core.policy import Grant
from citadel_py.core.ports import HeldSVID
from citadel_py.core.profile import Authority, Validity
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.sds.encoding import SECRET_TYPE_URL
from demo_parts.envoys import Envoy, EnvoyStarter
from demo_parts.wire import CLIENT_HEADERS, SERVER_HEADERS

TD = TrustDomain("example.org")
CLIENT, SERVER = SpiffeID(TD, "/client"), SpiffeID(TD, "/server")
AGENT = SpiffeID(TD, "/agent")
LOOPBACK = Address("127.0.0.1", 0)
HOUR = timedelta(hours=1)


class Signer:
    """A root and an intermediate of one trust domain, valid now. It signs for anybody, in any domain."""

    def __init__(self, trust_domain: TrustDomain = TD) -> None:
        now = _now()
        root = self._root(trust_domain, now)
        key = generate_key(KeyType.P256)
        validity = Validity(now - HOUR, now + 1000 * HOUR)
        certificate = profile.intermediate_certificate(key.public_key(), trust_domain, root, validity, serial=_serial())
        self.bundle = Bundle(trust_domain, (root.certificate,))
        self._root_authority, self._authority = root, Authority(certificate, key)
        authority = self._authority
        self._issuer = Issuer.activated(authority, (certificate,), self.bundle, now=now, serial=_serial())

    def mint(self, id: SpiffeID, *, ttl: timedelta = HOUR, dns: tuple[str, ...] = ()) -> HeldSVID:
        """A new key and certificate."""
        now, key = _now(), generate_key(KeyType.P256)
        svid = self._issuer.issue(key.public_key(), Grant(id, ttl, dns), now=now, serial=_serial())
        return HeldSVID(svid, key, self.bundle, issued_at=now, renew_at=now + ttl / 2)

    def root_crl(self) -> x509.CertificateRevocationList:
        """The root's list, which is empty."""
        return _crl(self._root_authority, ())

    def crl(self, *revoked: HeldSVID, ttl: timedelta = HOUR) -> x509.CertificateRevocationList:
        """The list of the intermediate, who signs the leaves."""
        return _crl(self._authority, revoked, ttl=ttl)

    @staticmethod
    def _root(trust_domain: TrustDomain, now: datetime) -> Authority:
        key = generate_key(KeyType.P256)
        validity = Validity(now - HOUR, now + 2000 * HOUR)
        return Authority(profile.root_certificate(key, trust_domain, validity, serial=_serial()), key)


@dataclass
class Pair:
    """A client Envoy that sends what comes to `url` to a server Envoy by mTLS."""

    server: Envoy
    client: Envoy
    server_port: int
    url: str

    async def handshakes(self) -> int:
        """How many the server has completed."""
        return await self.server.total(r"^listener\..*\.ssl\.handshake$")


async def start_server(starter: EnvoyStarter, sds: Path | RemoteAgent, **changes: Any) -> tuple[Envoy, int]:
    """A server Envoy that admits the trust domain unless changed, and its port."""
    settings: dict[str, Any] = {
        "listen": LOOPBACK,
        "admin_port": 0,
        "admitted": TD,
        "response_headers": SERVER_HEADERS,
        **changes,
    }
    envoy = await starter.start("server", server_bootstrap(ServerProxy(node="s", sds=sds, **settings)))
    return envoy, await envoy.port(LISTENER)


async def start_client(starter: EnvoyStarter, sds: Path | RemoteAgent, port: int, **changes: Any) -> tuple[Envoy, str]:
    """A client Envoy that expects SERVER behind the port, a handshake per request unless changed; and its URL."""
    settings: dict[str, Any] = {"listen": LOOPBACK, "admin_port": 0, "peer": SERVER}
    settings |= {
        "upstream": Address("127.0.0.1", port),
        "max_requests_per_connection": 1,
        "response_headers": CLIENT_HEADERS,
        **changes,
    }
    envoy = await starter.start("client", client_bootstrap(ClientProxy(node="c", sds=sds, **settings)))
    return envoy, f"http://127.0.0.1:{await envoy.port(LISTENER)}/"


def write_credentials(directory: Path, held: HeldSVID) -> Path:
    """As `agent --out` has them, and what tells Envoy of them."""
    directory.mkdir()
    (directory / "tls.crt").write_bytes(held.svid.chain_pem())
    (directory / "tls.key").write_bytes(private_key_pem(held.key))
    (directory / "ca.crt").write_bytes(held.bundle.to_pem())
    (directory / CERTIFICATE_FILE).write_text(json.dumps(certificate_file(directory)))
    (directory / TRUST_FILE).write_text(json.dumps(trust_file(directory)))
    return directory


@dataclass
class CarelessServer:
    """SDS that sends whatever secret it is told to, and keeps what Envoy answered."""

    pushes: dict[str, asyncio.Queue[Secret]] = field(default_factory=lambda: defaultdict(asyncio.Queue))
    replies: dict[str, asyncio.Queue[DiscoveryRequest]] = field(default_factory=lambda: defaultdict(asyncio.Queue))

    def handler(self) -> grpc.GenericRpcHandler:
        method = grpc.stream_stream_rpc_method_handler(
            self._stream, DiscoveryRequest.FromString, DiscoveryResponse.SerializeToString
        )
        service = "envoy.service.secret.v3.SecretDiscoveryService"
        return grpc.method_handlers_generic_handler(service, {"StreamSecrets": method})

    async def push(self, secret: Secret) -> DiscoveryRequest:
        """Send it; Envoy's ACK or NACK."""
        self.pushes[secret.name].put_nowait(secret)
        async with asyncio.timeout(20):
            return await self.replies[secret.name].get()

    async def _stream(
        self, requests: AsyncIterator[DiscoveryRequest], _context: object
    ) -> AsyncIterator[DiscoveryResponse]:
        name = (await anext(requests)).resource_names[0]
        for version in map(str, itertools.count(1)):
            packed = Packed()
            packed.Pack(await self.pushes[name].get())
            yield DiscoveryResponse(version_info=version, nonce=version, type_url=SECRET_TYPE_URL, resources=[packed])
            self.replies[name].put_nowait(await anext(requests))


def tls_client(place: Path, held: HeldSVID | None = None) -> ssl.SSLContext:
    """A TLS client that trusts anybody. By TLS 1.2, in which a refusal comes with the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if held:
        file = place / f"{held.svid.serial}.pem"
        file.write_bytes(private_key_pem(held.key) + held.svid.chain_pem())
        context.load_cert_chain(file)
    return context


async def is_admitted(port: int, client: ssl.SSLContext, *, header: str = "x-nothing: here") -> bool:
    """Whether a server completes a handshake and answers a request, with this header, well."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
    except (ssl.SSLError, ConnectionError):
        return False
    writer.write(f"GET / HTTP/1.1\r\nhost: test\r\n{header}\r\nconnection: close\r\n\r\n".encode())
    status = await reader.readline()
    writer.close()
    return status.startswith(b"HTTP/1.1 200")


def _crl(authority: Authority, revoked: Iterable[HeldSVID], *, ttl: timedelta = HOUR) -> x509.CertificateRevocationList:
    begin = _now() - timedelta(minutes=1)
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    builder = builder.last_update(begin).next_update(begin + ttl)
    builder = builder.add_extension(x509.CRLNumber(1), critical=False)
    for each in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(each.svid.leaf.serial_number).revocation_date(begin)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority.key, hashes.SHA256())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _serial() -> int:
    return profile.serial_number(os.urandom(profile.SERIAL_BYTES))
