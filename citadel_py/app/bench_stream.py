"""The client's side of the batch stream for `bench`: what is ready at a moment goes out as one message."""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
from collections.abc import AsyncIterator, Sequence

import grpc

from citadel_py._proto.citadel.v1 import issuance_pb2, issuance_pb2_grpc
from citadel_py.app.bench_calls import CALL_TIMEOUT_S, CallFailed, Credential

_SOME_ID = "spiffe://bench.example/ns/bench/sa/"


class Stream:
    """One stream of one caller, who asks for identities of others, as the agent of a node does."""

    def __init__(self, channel: grpc.aio.Channel, credential: Credential) -> None:
        headers = (("authorization", f"Bearer {credential.token}"),) if credential.token else ()
        stub: issuance_pb2_grpc.IssuanceServiceAsyncStub = issuance_pb2_grpc.IssuanceServiceStub(channel)
        self._ready: list[issuance_pb2.IssueRequest] = []
        self._has_news = asyncio.Event()
        self._open: dict[str, asyncio.Future[Sequence[str]]] = {}
        self._numbers = itertools.count()
        self._name = os.urandom(8).hex()
        self._ended: CallFailed | None = None
        self._call = stub.Issue(self._messages(), metadata=headers)

    async def ask(self, csr: str, _credential: Credential) -> Sequence[str]:
        """See Connection."""
        if self._ended is not None:
            raise self._ended
        id = f"{self._name}-{next(self._numbers)}"
        answer = self._open[id] = asyncio.get_running_loop().create_future()
        self._ready.append(issuance_pb2.IssueRequest(request_id=id, csr=csr.encode(), spiffe_id=_SOME_ID + id))
        self._has_news.set()
        try:
            return await asyncio.wait_for(answer, CALL_TIMEOUT_S)
        except TimeoutError as error:
            raise CallFailed("no answer in time") from error

    async def read(self) -> None:
        """Hand over answers until the stream ends."""
        try:
            async for message in self._call:
                for response in message.responses:
                    _settle(self._open.pop(response.request_id), response)
            why = "the stream has ended"
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name}: {error.details()}"
        self._ended = CallFailed(why)
        for answer in self._open.values():
            answer.set_exception(CallFailed(why))

    async def _messages(self) -> AsyncIterator[issuance_pb2.IssueRequests]:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            ready, self._ready = self._ready, []
            yield issuance_pb2.IssueRequests(requests=ready)


def _settle(answer: asyncio.Future[Sequence[str]], response: issuance_pb2.IssueResponse) -> None:
    if answer.done():  # nobody waits any more
        return
    if response.HasField("error"):
        answer.set_exception(CallFailed(response.error.message))
    else:
        chain = [ssl.DER_cert_to_PEM_cert(each) for each in response.certificate.chain]
        answer.set_result([*chain, ""])  # the bundle is not sent with each
