"""A whole certificate service on loopback: real TLS, real gRPC, a real ledger, and a clock that tests move."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from google.protobuf.json_format import ParseDict

from citadel_py._proto.istio.v1.auth import ca_pb2, ca_pb2_grpc
from citadel_py.ca.authn import Attested, Authentication, CallCredentials
from citadel_py.ca.certificate_authn import CertificateAuthenticator
from citadel_py.ca.gate import Gate
from citadel_py.ca.group_commit import GroupCommit
from citadel_py.ca.in_flight import InFlight
from citadel_py.ca.issuance import IssuanceService, StreamLimits
from citadel_py.ca.issuer_keys import KeySet
from citadel_py.ca.issuing import Issuing
from citadel_py.ca.join_authn import JoinTokenAuthenticator
from citadel_py.ca.jwks import JwksSource
from citadel_py.ca.jwt_authn import JWTAuthenticator, JWTRules
from citadel_py.ca.server import IN_FLIGHT, CAServer, Limits
from citadel_py.ca.service import CertificateService
from citadel_py.ca.serving import ServerNames, ServingCertificate
from citadel_py.ca.trust import TrustLimits, TrustService
from citadel_py.core import profile
from citadel_py.core.admission import AdmissionLimits
from citadel_py.core.bundle import Bundle
from citadel_py.core.csr import create_csr
from citadel_py.core.engine import Engine
from citadel_py.core.issuer import Issuer
from citadel_py.core.join_token import new_token
from citadel_py.core.keys import KeyType, PrivateKey, generate_key, private_key_pem
from citadel_py.core.ledger import LedgerEntry
from citadel_py.core.pem import load_certificates
from citadel_py.core.policy import Grant, Policy
from citadel_py.core.ports import JoinToken
from citadel_py.core.profile import Authority, Validity
from citadel_py.core.rates import Rate
from citadel_py.core.spiffe import SpiffeID, TrustDomain
from citadel_py.core.trust import Trust
from citadel_py.core.verify import verify_svid
from citadel_py.core.x509svid import X509SVID
from citadel_py.obs.metrics import CAMetrics
from citadel_py.store.ledger import SQLLedger

Reply: TypeAlias = ca_pb2.IstioCertificateResponse

TD = TrustDomain("example.org")
ISSUER, AUDIENCE = "https://issuer.example.org", "istio-ca"
HOUR = timedelta(hours=1)
# Tests that are about something else are not limited.
_MANY = Rate(1_000_000, timedelta(seconds=1))
UNLIMITED = AdmissionLimits(_MANY, _MANY, _MANY, _MANY, _MANY, same_at_once=1_000_000)


@dataclass
class Clock:
    """Time as the service sees it. TLS has its own, so it begins at the real one."""

    moment: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    def now(self) -> datetime:
        return self.moment

    def advance(self, by: timedelta) -> None:
        self.moment += by


def make_authority(now: datetime, trust_domain: TrustDomain = TD) -> tuple[Authority, Authority]:
    """A root and an intermediate below it."""
    root_key, key = generate_key(KeyType.P256), generate_key(KeyType.P256)
    root_validity, validity = Validity(now - HOUR, now + 2000 * HOUR), Validity(now - HOUR, now + 1000 * HOUR)
    root = Authority(profile.root_certificate(root_key, trust_domain, root_validity, serial=new_serial()), root_key)
    certificate = profile.intermediate_certificate(key.public_key(), trust_domain, root, validity, serial=new_serial())
    return root, Authority(certificate, key)


def new_serial() -> int:
    return profile.serial_number(os.urandom(profile.SERIAL_BYTES))


def make_engine(now: datetime, trust_domain: TrustDomain = TD) -> Engine:
    root, signer = make_authority(now, trust_domain)
    bundle = Bundle(trust_domain, (root.certificate,))
    issuer = Issuer.activated(signer, (signer.certificate,), bundle, now=now, serial=new_serial())
    return Engine(issuer, Policy(trust_domain), os.urandom)


@dataclass(frozen=True)
class Held:
    """A certificate and its key, as a client has them."""

    svid: X509SVID
    key: PrivateKey


def mint(engine: Engine, path: str, *, now: datetime, ttl: timedelta = 2 * HOUR) -> Held:
    """A certificate that this engine's authority signed for somebody, long ago as it were."""
    key = generate_key(KeyType.P256)
    grant = Grant(SpiffeID(engine.policy.trust_domain, path), ttl)
    return Held(engine.issuer.issue(key.public_key(), grant, now=now, serial=new_serial()), key)


class TokenIssuer:
    """Signs tokens with one RSA key and publishes it."""

    def __init__(self, key: rsa.RSAPrivateKey, clock: Clock, kid: str | None = "one") -> None:
        self.key = key
        self.kid = kid
        self._clock = clock

    def jwks(self) -> bytes:
        member = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return json.dumps({"keys": [{**member, "use": "sig", **({"kid": self.kid} if self.kid else {})}]}).encode()

    def claims(self, **changes: object) -> dict[str, object]:
        now = int(self._clock.now().timestamp())
        claims = {
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": "system:serviceaccount:shop:cart",
            "iat": now,
            "exp": now + 600,
        }
        return {name: value for name, value in {**claims, **changes}.items() if value is not None}

    def token(self, *, headers: Mapping[str, object] | None = None, algorithm: str = "RS256", **claims: object) -> str:
        header = {**({"kid": self.kid} if self.kid else {}), **(headers or {})}
        return jwt.encode(self.claims(**claims), self.key, algorithm=algorithm, headers=header)


class Turnstile:
    """An authenticator that knows nobody and, while it is closed, keeps everybody waiting."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def attest(self, _credentials: CallCredentials, *, now: datetime) -> Attested | None:  # noqa: ARG002
        self.arrived.set()
        await self.open.wait()
        return None


class World:
    """The service with everything around it that a test may change."""

    def __init__(
        self,
        folder: Path,
        token_key: rsa.RSAPrivateKey,
        *,
        limits: Limits | None = None,
        admission: AdmissionLimits | None = None,
        streams: StreamLimits | None = None,
        trust: TrustLimits | None = None,
        ttl_spread: float = 0.0,
    ) -> None:
        self.clock = Clock()
        self.limits = limits
        self.engine = make_engine(self.clock.now())
        self.ledger_path = folder / "ledger.db"
        self.ledger = SQLLedger.open(self.ledger_path, writer="serve", now=self.clock.now, busy_timeout=timedelta(0))
        self.issuer = TokenIssuer(token_key, self.clock)
        self.jwks_document = self.issuer.jwks()
        self.metrics = CAMetrics()
        self.commits = GroupCommit(self.ledger)
        self.jwks = JwksSource("jwks of the test", self._read_jwks, every=HOUR, pause=timedelta(0))
        self.in_flight = InFlight(IN_FLIGHT)
        self.serving = ServingCertificate(
            lambda: self.engine, self.commits.record, names=ServerNames.parse(), now=self.clock.now, uniform=lambda: 0.5
        )
        rules = JWTRules(ISSUER, AUDIENCE, TD)
        self.turnstile = Turnstile()
        self.authentication = Authentication(
            [
                self.turnstile,
                CertificateAuthenticator(lambda: self.engine.issuer.bundle),
                JoinTokenAuthenticator(self.ledger),
                JWTAuthenticator(rules, self),
            ]
        )
        self.gate = Gate(admission or UNLIMITED, now=self.clock.now, metrics=self.metrics)
        self.issuing = Issuing(
            lambda: self.engine,
            self.authentication,
            self.commits,
            self.gate,
            now=self.clock.now,
            uniform=lambda: 0.5,
            metrics=self.metrics,
            ttl_spread=ttl_spread,
        )
        self.service = CertificateService(self.issuing, self.in_flight)
        self.issuance = IssuanceService(self.issuing, self.in_flight, uniform=lambda: 0.5, limits=streams)
        self._trust_limits = trust
        self.trust = self.new_trust()
        self.server: CAServer

    def new_trust(self) -> TrustService:
        """As after a start: it remembers nobody."""
        attest, metrics = self.issuing.attest, self.metrics
        return TrustService(attest, now=self.clock.now, uniform=lambda: 0.5, metrics=metrics, limits=self._trust_limits)

    async def _read_jwks(self) -> bytes:
        return self.jwks_document

    @property
    def keys(self) -> KeySet:
        return self.jwks.keys

    async def catch_up(self) -> None:
        await self.jwks.catch_up()

    async def start(self) -> None:
        await self.serving.renew()
        await self.jwks.load()
        self.trust.publish(Trust(self.engine.issuer.bundle), self.engine.issuer.authority.id)
        self.server = self.listeners()
        await self.server.start("localhost:0")
        await self.server.set_serving(serving=True)

    def listeners(self) -> CAServer:
        parts = (self.service, self.issuance, self.serving, self.in_flight)
        return CAServer(*parts, trust=self.trust, metrics=self.metrics, uniform=lambda: 0.5, limits=self.limits)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        await self.start()
        keeping = asyncio.create_task(self.jwks.run())
        try:
            yield self
        finally:
            keeping.cancel()
            await self.server.stop(timedelta(0))
            self.ledger.close()

    # --- what clients do

    @asynccontextmanager
    async def channel(self, held: Held | None = None, *more: tuple[str, int]) -> AsyncIterator[grpc.aio.Channel]:
        """A connection to the listener for tokens, or with a certificate to the one for certificates."""
        bundle = self.engine.issuer.bundle.to_pem()
        if held is None:
            address, credentials = self.server.address, grpc.ssl_channel_credentials(bundle)
        else:
            address = self.server.mtls_address
            credentials = grpc.ssl_channel_credentials(bundle, private_key_pem(held.key), held.svid.chain_pem())
        options = [("grpc.use_local_subchannel_pool", 1), *more]  # no connection of another test
        async with grpc.aio.secure_channel(address, credentials, options) as channel:
            yield channel

    async def ask(
        self,
        *,
        token: str | None = None,
        held: Held | None = None,
        channel: grpc.aio.Channel | None = None,
        **request: Any,
    ) -> Reply:
        """One call, on a connection of its own unless one is given."""
        if channel is not None:
            return await call(channel, token=token, **request)
        async with self.channel(held) as own:
            return await call(own, token=token, **request)

    def join_token(self, path: str = "/machine/one", *, ttl: timedelta = HOUR) -> str:
        text, digest = new_token(os.urandom(32))
        self.ledger.add(JoinToken(digest, SpiffeID(TD, path), self.clock.now() + ttl))
        return text

    def mint(self, path: str = "/ns/shop/sa/cart", *, ttl: timedelta = 2 * HOUR) -> Held:
        return mint(self.engine, path, now=self.clock.now(), ttl=ttl)

    # --- what came of it

    def issued(self) -> list[LedgerEntry]:
        """Ledger rows but for those of the service's own serving certificate."""
        return [entry for entry in self.ledger.entries() if entry.method != "self"]

    def metrics_issued(self) -> int:
        """What the metric says of certificates that callers got."""
        families = self.metrics.registry.collect()
        return sum(
            int(sample.value)
            for family in families
            for sample in family.samples
            if sample.name == "citadel_certificates_issued_total"
        )

    def verified(self, reply: Reply) -> X509SVID:
        chain = [
            certificate for element in reply.cert_chain[:-1] for certificate in load_certificates(element.encode())
        ]
        return verify_svid(chain, self.engine.issuer.bundle, now=self.clock.now())

    # --- what an operator changes

    def change_policy(self, **changes: Any) -> None:
        self.engine = replace(self.engine, policy=replace(self.engine.policy, **changes))

    def sign_with(self, issuer: Issuer) -> None:
        self.engine = replace(self.engine, issuer=issuer)

    def forget_jwks(self) -> None:
        """As if the service had just started and the issuer could not be reached."""
        self.jwks = JwksSource("the issuer", self._read_jwks, every=HOUR)

    def successor(self) -> Issuer:
        """An issuer below a new root, with both roots in its bundle."""
        root, signer = make_authority(self.clock.now())
        bundle = self.engine.issuer.bundle
        bundle = bundle.with_authorities((*bundle.authorities, root.certificate))
        return Issuer.activated(signer, (signer.certificate,), bundle, now=self.clock.now(), serial=new_serial())


def new_csr(key: PrivateKey | None = None, id: SpiffeID | None = None) -> str:
    return create_csr(key or generate_key(KeyType.P256), id).decode()


def call(
    channel: grpc.aio.Channel,
    *,
    token: str | None = None,
    authorization: str | None = None,
    metadata: tuple[tuple[str, str], ...] = (),
    csr: str | None = None,
    validity: int = 0,
    wishes: Mapping[str, object] | None = None,
    timeout: float | None = 20,
) -> grpc.aio.UnaryUnaryCall[ca_pb2.IstioCertificateRequest, Reply]:
    """Begin one call; it is awaited for the reply."""
    request = ca_pb2.IstioCertificateRequest(csr=new_csr() if csr is None else csr, validity_duration=validity)
    ParseDict(dict(wishes or {}), request.metadata)
    header = authorization if authorization is not None else f"Bearer {token}" if token is not None else None
    headers = (*metadata, *((("authorization", header),) if header is not None else ()))
    stub = ca_pb2_grpc.IstioCertificateServiceStub(channel)
    return stub.CreateCertificate(request, metadata=grpc.aio.Metadata(*headers), timeout=timeout)


async def until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    """Give other tasks their turn until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
