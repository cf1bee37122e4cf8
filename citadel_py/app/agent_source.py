"""Where an agent's certificates come from, as its settings say: a CA service, or the engine in this process.

A node's agent asks for the others in the node's own name, over one stream; its own certificate it has
as any agent has one, by a token at first and then by the certificate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from citadel_py.agent.batch_client import BatchClient
from citadel_py.agent.batch_stream import BatchNotOffered
from citadel_py.agent.ca_client import CAAddress, CAClient
from citadel_py.app.authority import AuthorityFiles, read_passphrase
from citadel_py.app.learned_port import LearnedPort
from citadel_py.app.local_source import LocalSource
from citadel_py.app.runtime import utcnow
from citadel_py.config import AgentSettings
from citadel_py.core.csr import CsrPolicy
from citadel_py.core.errors import Unavailable
from citadel_py.core.pem import MAX_PEM_BYTES
from citadel_py.core.policy import TTLLimits
from citadel_py.core.ports import CertificateSource, HeldSVID, SignedReply
from citadel_py.core.spiffe import SpiffeID
from citadel_py.obs import events
from citadel_py.obs.logging import get_logger
from citadel_py.rotator.judgement import is_valid
from citadel_py.store.files import read_bounded

LEARNED: Final = "ca.json"  # below the directory of --state

_MAX_TOKEN_BYTES: Final = 32 * 1024

_log = get_logger()


class Source(CertificateSource, Protocol):
    """Either of our sources."""

    async def check(self) -> None:
        """Raise CitadelError where what was configured cannot work, whoever is away."""
        ...

    async def is_current(self, held: HeldSVID) -> bool:
        """False where this source is known to have another bundle than the one that came with this SVID."""
        ...

    async def aclose(self) -> None:
        """Let go of connections and files."""
        ...


class NodeSource:
    """`node` vouches for the others, by what it holds: `held` tells. Where there is no batch API each asks alone."""

    def __init__(self, alone: CAClient, node: SpiffeID, held: Callable[[SpiffeID], HeldSVID | None]) -> None:
        self._alone = alone
        self._batch = BatchClient(alone, now=utcnow)
        self._node = node
        self._held = held
        self._is_alone = False

    async def sign(self, csr_pem: bytes, *, id: SpiffeID, ttl: timedelta | None, held: HeldSVID | None) -> SignedReply:
        """See core.ports.CertificateSource."""
        if id == self._node:
            return await self._alone.sign(csr_pem, id=id, ttl=ttl, held=held)
        try:
            reply = await self._batch.sign(csr_pem, id=id, ttl=ttl, voucher=self._voucher())
        except BatchNotOffered:
            self._tell_alone(is_alone=True)
            return await self._alone.sign(csr_pem, id=id, ttl=ttl, held=held)
        self._tell_alone(is_alone=False)
        return reply

    async def aclose(self) -> None:
        """End the stream."""
        await self._batch.aclose()

    def _voucher(self) -> HeldSVID:
        voucher = self._held(self._node)
        if voucher is None or not is_valid(voucher, utcnow()):
            raise Unavailable(f"{self._node}, which vouches for it, has no valid certificate", rule="no_voucher")
        return voucher

    def _tell_alone(self, *, is_alone: bool) -> None:
        if is_alone and not self._is_alone:
            _log.warning(events.BATCH_NOT_OFFERED)
        self._is_alone = is_alone


async def new_source(settings: AgentSettings) -> Source:
    """Raises CitadelError."""
    if settings.ca_dir is not None:
        return LocalSource.of_directory(await _authority(settings, settings.ca_dir))
    if settings.ca is None or settings.ca_bundle is None:
        raise RuntimeError("the settings were not checked")
    mtls = str(settings.ca_mtls) if settings.ca_mtls else None
    port = LearnedPort(settings.state / LEARNED, str(settings.ca))
    token_file = settings.token_file
    return CAClient(
        CAAddress(settings.ca.host, settings.ca.port, mtls),
        read_roots=partial(read_bounded, settings.ca_bundle, MAX_PEM_BYTES),
        read_token=partial(read_bounded, token_file, _MAX_TOKEN_BYTES) if token_file else None,
        now=utcnow,
        learned_port=port.load(),
        remember_port=port.save,
    )


async def _authority(settings: AgentSettings, directory: Path) -> AuthorityFiles:
    return AuthorityFiles(
        directory=directory,
        passphrase=await asyncio.to_thread(read_passphrase, settings.passphrase_file),
        limits=TTLLimits(settings.ttl) if settings.ttl else TTLLimits(),
        csr_policy=CsrPolicy(),
        relax_names=False,
        now=utcnow,
    )
