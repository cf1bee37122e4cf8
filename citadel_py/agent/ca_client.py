"""Certificates from a CA service: by the certificate that is held, by a token, and the one where the other fails.

It knows no files: whoever makes it hands over how to read the roots and the token, which happens
anew for each attempt, since both may be replaced at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from citadel_py._proto.istio.v1.auth import ca_pb2
from citadel_py.agent.ca_call import Answer, Channels, Door, create_certificate
from citadel_py.agent.ca_reply import read_reply
from citadel_py.core.bundle import Bundle
from citadel_py.core.csr import parse_csr_pem
from citadel_py.core.errors import CitadelError, InvalidConfiguration, Unauthenticated, Unavailable
from citadel_py.core.keys import private_key_pem
from citadel_py.core.pem import certificates_pem, load_certificates
from citadel_py.core.ports import HeldSVID, Now, SignedReply
from citadel_py.core.spiffe import SpiffeID

DEADLINE: Final = timedelta(seconds=10)  # of one call; an attempt makes three at most
_MAX_TOKEN_CHARACTERS: Final = 16 * 1024
# A certificate that ends within a call is not worth showing.
_LAST_MOMENTS: Final = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class CAAddress:
    """Where the CA is. Without `mtls` it is asked for the port on which it takes certificates."""

    host: str
    port: int
    mtls: str | None = None

    @property
    def for_tokens(self) -> str:
        return self.at(self.port)

    def at(self, port: int) -> str:
        """`HOST:PORT`, as gRPC takes it."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class CAClient:
    """core.ports.CertificateSource over the compatible gRPC API.

    `read_roots` gives the PEM roots that verify the service, `read_token` the token's text; they run
    in a thread and may raise CitadelError. `learned_port` is what an earlier run was told, and
    `remember_port` keeps it for the next one.
    """

    def __init__(
        self,
        address: CAAddress,
        *,
        read_roots: Callable[[], bytes],
        read_token: Callable[[], bytes] | None,
        now: Now,
        learned_port: int | None = None,
        remember_port: Callable[[int], None] = lambda _port: None,
        deadline: timedelta = DEADLINE,
    ) -> None:
        self._address = address
        self._read_roots = read_roots
        self._read_token = read_token
        self._now = now
        self._learned_port = learned_port
        self._remember_port = remember_port
        self._deadline = deadline
        self._channels = Channels()
        self._trusted: Bundle | None = None

    def trust(self, bundle: Bundle) -> None:
        """Verify the service by these authorities too, from the next call on."""
        self._trusted = bundle

    async def check(self) -> None:
        """Raise CitadelError where no call could succeed: no roots, no token. It asks nobody."""
        await self._roots(None)
        if await self.token() is None:
            raise no_credential()

    async def is_current(self, held: HeldSVID) -> bool:  # noqa: ARG002 - what has not been asked for is not known
        """True: which bundle the CA has, is known from its next answer."""
        return True

    async def aclose(self) -> None:
        """Close all connections."""
        await self._channels.close()

    async def sign(self, csr_pem: bytes, *, id: SpiffeID, ttl: timedelta | None, held: HeldSVID | None) -> SignedReply:
        """See core.ports.CertificateSource. Every way there is, is tried before it fails."""
        seconds = int(ttl.total_seconds()) if ttl else 0
        request = ca_pb2.IstioCertificateRequest(csr=csr_pem.decode(), validity_duration=seconds)
        attempt = _Attempt(self, request, held, await self._roots(held))
        answer = await attempt.run()
        reply = read_reply(answer.elements, public_key=parse_csr_pem(csr_pem).public_key, id=id, now=self._now())
        return replace(reply, renew_at=answer.renew_at)

    async def certificate_door(self, held: HeldSVID, *, is_doubtful: bool = False) -> Door:
        """Where certificates are taken, with this one to show; asked for anew where what was learned `is_doubtful`.

        Raises CitadelError where it cannot be learned.
        """
        roots = await self._roots(held)
        if self.for_certificates is None or (is_doubtful and self.may_ask_for_port):
            await self._ask_for_port(roots)
        if self.for_certificates is None:
            raise Unavailable("the CA has not told where it takes certificates", rule="mtls_port_unknown")
        return Door(self.for_certificates, roots, held.svid.chain_pem(), private_key_pem(held.key))

    async def call(self, door: Door, request: ca_pb2.IstioCertificateRequest, token: str | None) -> Answer:
        """One call. Raises CitadelError."""
        channel = await self._channels.to(door)
        return await create_certificate(
            channel, request, token=token, deadline=self._deadline, learn_port=self._learn_port
        )

    @property
    def for_tokens(self) -> str:
        return self._address.for_tokens

    @property
    def for_certificates(self) -> str | None:
        """Where certificates are taken, as far as it is known."""
        if self._address.mtls or self._learned_port is None:
            return self._address.mtls
        return self._address.at(self._learned_port)

    @property
    def may_ask_for_port(self) -> bool:
        """Whether the listener for tokens can tell something about the other one that is not configured."""
        return self._address.mtls is None

    def is_worth_showing(self, held: HeldSVID) -> bool:
        """Whether this certificate can vouch for its own renewal."""
        return held.svid.not_before <= self._now() < held.svid.not_after - _LAST_MOMENTS

    async def token(self) -> str | None:
        """The token as it is now; None where none is configured. Raises CitadelError."""
        if self._read_token is None:
            return None
        return _parse_token(await asyncio.to_thread(self._read_token))

    async def _ask_for_port(self, roots: bytes) -> None:
        """By a call without credentials, whose refusal tells it."""
        with suppress(Unauthenticated):  # as it must be
            await self.call(Door(self.for_tokens, roots), ca_pb2.IstioCertificateRequest(), None)

    def _learn_port(self, port: int) -> None:
        if port != self._learned_port:
            self._learned_port = port
            self._remember_port(port)

    async def _roots(self, held: HeldSVID | None) -> bytes:
        """The configured roots and those that the CA has told of, so that a new root needs no new file."""
        bundles = (held.bundle if held else None, self._trusted)
        told = [authority for bundle in bundles if bundle for authority in bundle.authorities]
        try:
            configured = load_certificates(await asyncio.to_thread(self._read_roots))
        except CitadelError:
            if not told:
                raise
            configured = ()
        return certificates_pem(dict.fromkeys((*configured, *told)))


class _Attempt:
    """One request, by every way until one of them works; what went wrong is told together."""

    def __init__(
        self, client: CAClient, request: ca_pb2.IstioCertificateRequest, held: HeldSVID | None, roots: bytes
    ) -> None:
        self._client = client
        self._request = request
        self._held = held if held and client.is_worth_showing(held) else None
        self._roots = roots
        self._tried: set[str] = set()  # addresses to which the certificate was shown
        self._errors: list[tuple[str, CitadelError]] = []

    async def run(self) -> Answer:
        """The answer. Raises CitadelError."""
        for way in (self._by_certificate, self._by_token, self._by_certificate):
            answer = await way()
            if answer is not None:
                return answer
        raise _together(self._errors) if self._errors else no_credential()

    async def _by_certificate(self) -> Answer | None:
        """Also after the listener for tokens has told where the other one is (now)."""
        held, address = self._held, self._client.for_certificates
        if held is None or address is None or address in self._tried:
            return None
        self._tried.add(address)
        door = Door(address, self._roots, held.svid.chain_pem(), private_key_pem(held.key))
        return await self._try("by certificate", door, None)

    async def _by_token(self) -> Answer | None:
        try:
            token = await self._client.token()
        except CitadelError as error:
            self._errors.append(("by token", error))
            token = None
        if token is None:
            await self._ask_for_port()
            return None
        return await self._try("by token", Door(self._client.for_tokens, self._roots), token)

    async def _ask_for_port(self) -> None:
        """A call without credentials: its refusal tells the port. Only where a certificate could be shown there."""
        was_refused = any(not isinstance(error, Unavailable) for way, error in self._errors if way == "by certificate")
        if self._held is None or was_refused or not self._client.may_ask_for_port:
            return
        try:
            await self._client.call(Door(self._client.for_tokens, self._roots), self._request, None)
        except Unauthenticated:  # as it must be
            return
        except CitadelError as error:
            self._errors.append(("asking where certificates are taken", error))

    async def _try(self, way: str, door: Door, token: str | None) -> Answer | None:
        try:
            return await self._client.call(door, self._request, token)
        except CitadelError as error:
            self._errors.append((way, _retold(error, f"the CA at {door.address} {error.message}", error.hints)))
            return None


def _together(errors: Iterable[tuple[str, CitadelError]]) -> CitadelError:
    """One error of the kind that counts: what may pass before what will not."""
    errors = list(errors)
    main = next((error for _, error in errors if isinstance(error, Unavailable)), errors[0][1])
    message = "; ".join(f"{way}: {error.message}" for way, error in errors)
    hints = dict.fromkeys(hint for _, error in errors for hint in error.hints)
    return _retold(main, message, tuple(hints))


def _retold(error: CitadelError, message: str, hints: tuple[str, ...]) -> CitadelError:
    """The same in other words."""
    if isinstance(error, Unavailable):
        return type(error)(message, rule=error.rule, hint=hints, retry_after=error.retry_after)
    return type(error)(message, rule=error.rule, hint=hints)


def no_credential() -> CitadelError:
    return Unauthenticated(
        "no certificate is held that is valid now, and there is no token",
        rule="no_credential",
        hint="make a token with `citadel-py token create ID --dir D`, and give its file as --token-file",
    )


def _parse_token(data: bytes) -> str:
    """One line of printable ASCII. Raises InvalidConfiguration; the message holds nothing of it."""
    text = data.decode("ascii", "replace").strip()
    if not text or len(text) > _MAX_TOKEN_CHARACTERS or not all("!" <= letter <= "~" for letter in text):
        raise InvalidConfiguration(
            "the token file is empty, too large, or holds more than one line of plain text", rule="token_file_content"
        )
    return text
