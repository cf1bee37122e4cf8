"""Certificates for many identities over one stream, which the certificate of one of them opens.

One stream at a time, opened when there is something to ask and ended when there is nothing more: a CA
has places for so many. It is left for another one when the certificate that opened it is renewed.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Final, Protocol

from google.protobuf.duration_pb2 import Duration

from citadel_py._proto.citadel.v1 import issuance_pb2
from citadel_py.agent.batch_stream import BatchAnswer, BatchNotOffered, BatchStream, StreamEnded
from citadel_py.agent.ca_call import Channels, Door
from citadel_py.agent.ca_reply import check_reply
from citadel_py.core.csr import parse_csr_pem
from citadel_py.core.errors import Unavailable, VerificationFailed
from citadel_py.core.pem import load_certificate
from citadel_py.core.ports import HeldSVID, Now, SignedReply
from citadel_py.core.spiffe import SpiffeID

DEADLINE: Final = timedelta(seconds=20)  # of one request, with its wait for a turn at the CA
MAX_OPEN: Final = 64  # what the CA reads of one stream before it has answered
_IDLE: Final = timedelta(seconds=10)
_ASK_AGAIN_AFTER: Final = timedelta(minutes=5)  # a CA without a batch API may be replaced by one that has it
_MAX_CHAIN: Final = 10


class Doors(Protocol):
    """What knows the way to the CA: agent.ca_client.CAClient."""

    async def certificate_door(self, held: HeldSVID, *, is_doubtful: bool = False) -> Door:
        """Where certificates are taken, with this one to show. Raises CitadelError."""
        ...


class BatchClient:
    """`sign` as often at once as you like; `aclose` when nothing more is to be asked."""

    def __init__(self, doors: Doors, *, now: Now, deadline: timedelta = DEADLINE, idle: timedelta = _IDLE) -> None:
        self._doors = doors
        self._now = now
        self._deadline = deadline
        self._idle = idle
        self._channels = Channels()
        self._room = asyncio.Semaphore(MAX_OPEN)
        self._opening: asyncio.Task[BatchStream] | None = None
        self._stream: BatchStream | None = None
        self._voucher: HeldSVID | None = None  # whose certificate opened the stream
        self._retired: set[BatchStream] = set()
        self._is_doubtful = False
        self._ask_again_at = 0.0  # by the loop's clock

    async def sign(self, csr_pem: bytes, *, id: SpiffeID, ttl: timedelta | None, voucher: HeldSVID) -> SignedReply:
        """A certificate for `id`, asked for by whom `voucher` belongs to. The reply is verified.

        Raises CitadelError; Unavailable where trying again can help, and BatchNotOffered for a while
        after the CA has said that it has no such API.
        """
        lifetime = Duration(seconds=int(ttl.total_seconds())) if ttl else None
        request = issuance_pb2.IssueRequest(csr=csr_pem, spiffe_id=str(id), lifetime=lifetime)
        async with self._room:
            answer = await self._ask(request, voucher)
        if not 1 <= len(answer.chain) <= _MAX_CHAIN:
            raise VerificationFailed(f"the CA answered with {len(answer.chain)} certificates", rule="reply_shape")
        chain = [load_certificate(each) for each in answer.chain]
        public_key = parse_csr_pem(csr_pem).public_key
        reply = check_reply(chain, answer.bundle, public_key=public_key, id=id, now=self._now())
        return replace(reply, renew_at=answer.renew_at)

    async def aclose(self) -> None:
        """End all streams and connections; what is open fails."""
        if self._opening:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        for stream in (*self._retired, *((self._stream,) if self._stream else ())):
            await stream.close()
        await self._channels.close()

    async def _ask(self, request: issuance_pb2.IssueRequest, voucher: HeldSVID) -> BatchAnswer:
        try:
            return await self._ask_on(await self._open(voucher), request)
        except StreamEnded:  # it may have grown old, or its CA ends while another one goes on
            return await self._ask_on(await self._open(voucher), request)

    async def _ask_on(self, stream: BatchStream, request: issuance_pb2.IssueRequest) -> BatchAnswer:
        try:
            answer = await stream.ask(request)
        except BatchNotOffered:
            self._ask_again_at = asyncio.get_running_loop().time() + _ASK_AGAIN_AFTER.total_seconds()
            raise
        except Unavailable:
            # Of one request, or of the way there: that the stream is still open tells which.
            self._is_doubtful = self._is_doubtful or not stream.is_open
            raise
        self._is_doubtful = False
        return answer

    async def _open(self, voucher: HeldSVID) -> BatchStream:
        """The stream that this certificate opened, or a new one, for which all wait together."""
        if asyncio.get_running_loop().time() < self._ask_again_at:
            raise BatchNotOffered("the CA has no batch API")
        if self._stream and self._stream.is_open and self._voucher is voucher:
            return self._stream
        if self._opening is None:
            self._opening = asyncio.create_task(self._open_another(voucher))
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    async def _open_another(self, voucher: HeldSVID) -> BatchStream:
        door = await self._doors.certificate_door(voucher, is_doubtful=self._is_doubtful)
        channel = await self._channels.to(door)
        self._retire()
        self._stream = BatchStream(channel, deadline=self._deadline, idle=self._idle)
        self._voucher = voucher
        return self._stream

    def _opened(self, task: asyncio.Task[BatchStream]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # who waited has it; where nobody does any more, nobody misses it

    def _retire(self) -> None:
        if self._stream:
            self._retired = {each for each in (*self._retired, self._stream) if not each.is_over}
            self._stream.retire()
