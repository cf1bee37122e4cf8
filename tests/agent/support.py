"""The client's side: what it is given, what it holds, what it has learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from citadel_py.agent.ca_client import CAAddress, CAClient
from citadel_py.core.csr import create_csr
from citadel_py.core.errors import CitadelError
from citadel_py.core.keys import KeyType, PrivateKey, generate_key
from citadel_py.core.ports import HeldSVID, SignedReply
from citadel_py.core.spiffe import SpiffeID
from tests.ca.support import World

ID = SpiffeID.parse("spiffe://example.org/machine/one")
CART = SpiffeID.parse("spiffe://example.org/ns/shop/sa/cart")


def parts_of(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


@dataclass
class Agent:
    """Asks the service of a World. `roots` and `token` are the contents of its files; an error is one in reading."""

    world: World
    roots: bytes | CitadelError = b""
    token: bytes | CitadelError | None = None
    mtls: str | None = None
    learned: list[int] = field(default_factory=list)
    deadline: timedelta = timedelta(seconds=10)
    address: CAAddress | None = None
    _clients: list[CAClient] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roots = self.world.engine.issuer.bundle.to_pem()

    def client(self) -> CAClient:
        """As after a start: what was learned before is known."""
        host, port = parts_of(self.world.server.address)
        client = CAClient(
            self.address or CAAddress(host, port, self.mtls),
            read_roots=lambda: content(self.roots),
            read_token=None if self.token is None else lambda: content(self.token),
            now=self.world.clock.now,
            learned_port=self.learned[-1] if self.learned else None,
            remember_port=self.learned.append,
            deadline=self.deadline,
        )
        self._clients.append(client)
        return client

    async def ask(
        self,
        held: HeldSVID | None = None,
        *,
        id: SpiffeID = ID,
        client: CAClient | None = None,
        ttl: timedelta | None = None,
    ) -> HeldSVID:
        """One attempt; what comes of it is held from then on."""
        key = generate_key(KeyType.P256)
        reply = await (client or self.client()).sign(create_csr(key, id), id=id, ttl=ttl, held=held)
        return self.hold(key, reply)

    def hold(self, key: PrivateKey, reply: SignedReply) -> HeldSVID:
        now = self.world.clock.now()
        return HeldSVID(reply.svid, key, reply.bundle, issued_at=now, renew_at=now)

    def minted(self, path: str = "/machine/one", *, ttl: timedelta = timedelta(hours=2)) -> HeldSVID:
        """Something that was issued earlier."""
        held, now = self.world.mint(path, ttl=ttl), self.world.clock.now()
        return HeldSVID(held.svid, held.key, self.world.engine.issuer.bundle, issued_at=now, renew_at=now)

    @property
    def mtls_port(self) -> int:
        return parts_of(self.world.server.mtls_address)[1]

    def methods(self) -> list[str]:
        """How the service attested the callers to whom it gave certificates."""
        return [entry.method for entry in self.world.issued()]

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


def content(of: bytes | CitadelError | None) -> bytes:
    if isinstance(of, CitadelError):
        raise of
    return of or b""
