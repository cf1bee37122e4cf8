"""TLS of an SDS listener on TCP: the agent's own SVID as its certificate, and who the peer is.

gRPC asks for the certificate at each handshake, on a thread of its own, and gets a snapshot: a
renewal needs no restart, and connections that are open go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import CitadelError, Unauthenticated
from citadel_py.core.keys import private_key_pem
from citadel_py.core.pem import load_certificates
from citadel_py.core.ports import HeldSVID, Now
from citadel_py.core.spiffe import SpiffeID
from citadel_py.core.verify import verify_svid

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class _Served:
    bundle: Bundle
    configuration: grpc.ServerCertificateConfiguration = field(repr=False)


class ServingSVID:
    """The certificate that the listener shows, and the bundle that its peers are verified with."""

    def __init__(self, now: Now) -> None:
        self._now = now
        self._served: _Served | None = None
        self._has_come = asyncio.Event()

    async def has_come(self) -> None:
        """Wait for the first one."""
        await self._has_come.wait()

    def replace(self, held: HeldSVID) -> None:
        """Show this one from the next handshake on, and verify peers with its bundle."""
        pair = (private_key_pem(held.key), held.svid.chain_pem())
        configuration = grpc.ssl_server_certificate_configuration([pair], root_certificates=held.bundle.to_pem())
        self._served = _Served(held.bundle, configuration)
        self._has_come.set()

    def credentials(self) -> grpc.ServerCredentials:
        """Of a listener that demands a certificate of the trust domain."""
        given = self._current.configuration

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Runs on a thread of grpc at each handshake; None says that nothing changed."""
            nonlocal given
            current = self._current.configuration
            if current is given:
                return None
            given = current
            return current

        return grpc.dynamic_ssl_server_credentials(
            given,
            fetch,  # type: ignore[arg-type]  # its documentation allows None, the stubs do not
            require_client_authentication=True,
        )

    def peer(self, context: Context) -> SpiffeID:
        """Who called, verified anew: TLS checked it when the connection began, and by fewer rules.

        Raises Unauthenticated.
        """
        try:
            chain = load_certificates(b"".join(_chain(context.auth_context())))
            return verify_svid(chain, self._current.bundle, now=self._now()).id
        except CitadelError as error:  # whatever is wrong with it, nobody is authenticated by it
            raise Unauthenticated(f"client certificate: {error}", rule=error.rule) from error

    @property
    def _current(self) -> _Served:
        if self._served is None:
            raise RuntimeError("there is no certificate yet")
        return self._served


def _chain(facts: Mapping[str, Iterable[bytes]]) -> Iterable[bytes]:
    """The client's certificates as TLS has them: the leaf by itself, then the others."""
    for name in ("x509_pem_cert", "x509_pem_cert_chain"):
        yield from facts.get(name, ())
