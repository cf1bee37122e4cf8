"""The load client for SPIRE server: MintX509SVID, which administrators call over mTLS. It is run by bench_peers_run.py.

The certificate of SPIRE server has a SPIFFE ID and no DNS name, which gRPC's client cannot do without. So it
speaks to a Unix socket of this process, and Python's own TLS carries each of its connections on to the server.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from citadel_py.app.bench_calls import CALL_TIMEOUT_S, CallFailed, Connection, Credential, Load
from citadel_py.app.bench_load import main

_METHOD = "/spire.api.server.svid.v1.SVID/MintX509SVID"
_Field = descriptor_pb2.FieldDescriptorProto


def _messages() -> tuple[type[Any], type[Any]]:
    """Of MintX509SVIDRequest and MintX509SVIDResponse the fields that are needed (spire-api-sdk, svid.proto)."""
    file = descriptor_pb2.FileDescriptorProto(name="mint.proto", package="mint", syntax="proto3")
    file.message_type.add(name="Request").field.add(name="csr", number=1, type=_Field.TYPE_BYTES)
    file.message_type.add(name="SVID").field.add(
        name="cert_chain", number=1, type=_Field.TYPE_BYTES, label=_Field.LABEL_REPEATED
    )
    file.message_type.add(name="Response").field.add(
        name="svid", number=1, type=_Field.TYPE_MESSAGE, type_name=".mint.SVID"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    request, response = (pool.FindMessageTypeByName(f"mint.{name}") for name in ("Request", "Response"))
    return message_factory.GetMessageClass(request), message_factory.GetMessageClass(response)


_Request, _Response = _messages()


class _Spire:
    """A gRPC channel with the API."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._mint: Any = channel.unary_unary(
            _METHOD, request_serializer=_Request.SerializeToString, response_deserializer=_Response.FromString
        )

    async def ask(self, csr: str, _credential: Credential) -> Sequence[str]:
        """See Connection; there is no bundle at the end."""
        try:
            reply = await self._mint(_Request(csr=_der(csr)), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(f"{error.code().name}: {error.details()}") from error
        return [*map(ssl.DER_cert_to_PEM_cert, reply.svid.cert_chain), ""]


@cache
def _der(csr: str) -> bytes:
    return x509.load_pem_x509_csr(csr.encode()).public_bytes(Encoding.DER)


@asynccontextmanager
async def spire(load: Load, credential: Credential) -> AsyncIterator[Connection]:
    """A TLS connection of its own, with the administrator's certificate."""
    carrying: set[asyncio.Task[Any]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carrying.add(_this_task())
        host, port = load.address.split(":")
        there = await asyncio.open_connection(host, int(port), ssl=_tls(load.roots, credential))
        await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))

    with tempfile.TemporaryDirectory() as folder:
        async with await asyncio.start_unix_server(carry, f"{folder}/socket"):
            async with grpc.aio.insecure_channel(f"unix:{folder}/socket") as channel:
                yield _Spire(channel)
            await asyncio.gather(*carrying)


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - asyncio runs this in one
    return task


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either side has closed."""
    with suppress(OSError):
        while part := await reader.read(64 * 1024):
            writer.write(part)
            await writer.drain()
    writer.close()


@cache
def _tls(roots: str, credential: Credential) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=roots)
    context.check_hostname = False  # see above
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder, "credential.pem")
        pem.write_text(credential.chain + credential.key)
        context.load_cert_chain(pem)
    return context


if __name__ == "__main__":
    main(spire)
