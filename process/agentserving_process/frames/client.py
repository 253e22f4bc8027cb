"""The client's side: one stream to a control plane, with the errors that gRPC would raise."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

import grpc
from agentserving.transport.connection import Metadata
from agentserving.transport.framed import FramedEndpoint
from agentserving.v1 import stream_service_pb2 as pb
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from agentserving_process.addresses import split_address
from agentserving_process.frames import contexts
from agentserving_process.frames.codec import Decoder, FrameTooLargeError, Kind
from agentserving_process.frames.connection import BEAT_S, Connection, LostError

# A refused connection fails immediately, one to a port that is filtered does not: then gRPC is used.
CONNECT_S = 1.0
# The server waits for 7 s, and has a thousand clients.
OWN_BEAT_S = 2.0
# As gRPC's keepalive of clients: a ping each second, 2.5 s for its reply.
SILENT_S = 3.5
# As gRPC's limit of what is sent (agentserving.transport.channels).
MAX_REQUEST_BYTES = 16 << 20
_DETAILS = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Response = TypeVar("Response")


class FramedStream(Generic[Response]):
    """What grpc.aio gives for a stream, as far as it is used. Errors are grpc.aio.AioRpcError."""

    def __init__(self, connection: Connection, response: Any) -> None:
        """`response`: the class of the messages that come."""
        self._connection, self._decode = connection, response.FromString
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    async def read(self) -> Any:
        """The next message; None for bytes that are no message; grpc.aio.EOF at the end."""
        try:
            kind, payload = await self._connection.receive()
        except LostError as error:
            raise _failed(error) from error
        if kind is Kind.MESSAGE:
            try:
                return self._decode(payload)
            except DecodeError:
                return None
        self.cancel()
        if kind is not Kind.STATUS:
            raise _failed(LostError(f"a server sends no frame of kind {kind.name}"))
        return _ended(payload)

    async def write(self, message: Any) -> None:
        """Waits while the server does not read."""
        payload = message.SerializeToString()
        if len(payload) > MAX_REQUEST_BYTES:
            self._connection.fail(FrameTooLargeError(f"a message of {len(payload)} bytes; at most {MAX_REQUEST_BYTES}"))
        try:
            await self._connection.send(Kind.MESSAGE, payload)
        except LostError as error:
            raise _failed(error) from error

    async def done_writing(self) -> None:
        """Says that no more messages follow."""
        await self._connection.send(Kind.END)

    def cancel(self) -> None:
        """Ends the stream immediately; `read` raises."""
        self._timer.cancel()
        self._connection.fail(ConnectionAbortedError("the stream was cancelled"))

    def _beat(self) -> None:
        self._connection.tick()
        self._timer = self._loop.call_later(BEAT_S, self._beat)


def _ended(payload: bytes) -> Any:
    """grpc.aio.EOF, or raises the status."""
    try:
        status = status_pb2.Status.FromString(payload)
    except DecodeError:
        status = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message="a status that cannot be decoded")
    if status.code == 0:
        return grpc.aio.EOF
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    trailers = grpc.aio.Metadata((_DETAILS, payload))
    raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, status.message)


def _failed(error: LostError) -> grpc.aio.AioRpcError:
    is_too_large = isinstance(error.__cause__, FrameTooLargeError)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if is_too_large else grpc.StatusCode.UNAVAILABLE
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, str(error))


async def open_stream(
    endpoint: FramedEndpoint, method: str, response: type[Response], metadata: Metadata = ()
) -> FramedStream[Response]:
    """Connects and names the method (as in gRPC, /package.Service/Method). OSError; TimeoutError after CONNECT_S."""
    host, port = split_address(endpoint.address)
    loop = asyncio.get_running_loop()
    security = contexts.for_client(endpoint.pem) if endpoint.pem is not None else None
    connection = Connection(Decoder(endpoint.max_response_bytes), beat_s=OWN_BEAT_S, silent_s=SILENT_S)
    async with asyncio.timeout(CONNECT_S):
        await loop.create_connection(
            lambda: connection, host, port, ssl=security,
            server_hostname=endpoint.server_name if security is not None else None,
        )  # fmt: skip
    pairs = [pb.StreamMetadata(name=name, value=value) for name, value in metadata]
    connection.begin()
    await connection.send(Kind.OPENING, pb.StreamOpening(method=method, metadata=pairs).SerializeToString())
    return FramedStream(connection, response)
