"""What the SPIFFE Workload API has to say on one socket: the identities of its callers, encoded once for all.

It lives on the event loop and is used from nowhere else. It knows no gRPC and does not ask who calls:
whoever can reach the socket may have what is in here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from citadel_py._proto.spiffe.workload.workload_pb2 import X509SVID, X509BundlesResponse, X509SVIDResponse
from citadel_py.core.bundle import Bundle
from citadel_py.core.ports import HeldSVID
from citadel_py.core.spiffe import SpiffeID
from citadel_py.sds.listeners import Listeners


@dataclass(frozen=True, slots=True)
class Answers:
    """The serialized responses of one moment, each with everything there is (Workload API 4.3)."""

    svids: bytes = field(repr=False)
    bundles: bytes


class Workload:
    """The current identities. Streams `listen`, and read `answers` when they are woken.

    The identities of `order` come in that order, whenever they came; the others after them.
    """

    def __init__(self, order: Iterable[SpiffeID] = ()) -> None:
        self._order = tuple(order)
        self._held: dict[SpiffeID, HeldSVID] = {}
        self._federated: tuple[Bundle, ...] = ()
        self._answers: Answers | None = None
        self._listeners = Listeners()
        self.listen = self._listeners.listen
        self._is_closed = False

    @property
    def answers(self) -> Answers | None:
        """None while there is no identity. The first one is the default (Workload API 5.3)."""
        if self._answers is None and self._held:
            self._answers = encode(self._in_order(), self._federated)
        return self._answers

    @property
    def is_closed(self) -> bool:
        """True when streams should end."""
        return self._is_closed

    def replace(self, held: Iterable[HeldSVID], federated: Iterable[Bundle] = ()) -> None:
        """Make these the current ones of their identities; others stay. `federated`: all bundles of other domains."""
        self._held |= {each.svid.id: each for each in held}
        self._federated = tuple(federated)
        self._answers = None  # encoded when somebody asks: most agents have no callers here
        self._listeners.wake()

    def close(self) -> None:
        """Have all streams end."""
        self._is_closed = True
        self._listeners.wake()

    def _in_order(self) -> list[HeldSVID]:
        first = [self._held[id] for id in self._order if id in self._held]
        return first + [held for id, held in self._held.items() if id not in self._order]


def encode(held: Iterable[HeldSVID], federated: Iterable[Bundle] = ()) -> Answers:
    """Equal content gives equal bytes, so that a stream sees what it has sent already."""
    all_held = tuple(held)
    own, others = _by_trust_domain(each.bundle for each in all_held), _by_trust_domain(federated)
    svids = X509SVIDResponse(svids=[_svid(each) for each in all_held], federated_bundles=others)
    bundles = X509BundlesResponse(bundles=others | own)
    return Answers(svids.SerializeToString(deterministic=True), bundles.SerializeToString(deterministic=True))


def _svid(held: HeldSVID) -> X509SVID:
    return X509SVID(
        spiffe_id=str(held.svid.id),
        x509_svid=_der(held.svid.chain),
        x509_svid_key=held.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        bundle=_der(held.bundle.authorities),
    )


def _by_trust_domain(bundles: Iterable[Bundle]) -> dict[str, bytes]:
    return {str(bundle.trust_domain.id): _der(bundle.authorities) for bundle in bundles}


def _der(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)
