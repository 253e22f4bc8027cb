"""The server's side: plays the handlers of a gRPC server on framed connections.

Handlers get a context with the part of grpc.aio.ServicerContext that streams of the control plane use, so the gate, the
guard and the servicers are the same for both.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote

import grpc
import structlog
from agentserving.v1 import stream_service_pb2 as pb
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from agentserving_process.addresses import split_address
from agentserving_process.frames.codec import BrokenFrameError, Decoder, FrameTooLargeError, Kind
from agentserving_process.frames.connection import BEAT_S, Connection, LostError
from agentserving_process.listening import cannot_listen

log = structlog.get_logger()

# From accepting a connection to its opening frame, TLS included; twice, on a busy machine.
OPENING_S = 5.0
MAX_OPENING_BYTES = 64 << 10
# As gRPC's keepalive of this server: a ping every 2 s, 5 s for its reply.
SILENT_S = 7.0
BACKLOG = 1024
# When the process has no file descriptor left.
ACCEPT_AGAIN_S = 0.5
_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class _Details:
    """grpc.HandlerCallDetails."""

    method: str
    invocation_metadata: Sequence[tuple[str, str]]


class StreamContext:
    """Of one stream, as grpc.aio.ServicerContext."""

    def __init__(self, connection: Connection, opening: pb.StreamOpening, peer: str) -> None:
        self._connection, self._peer = connection, peer
        self._metadata = tuple((each.name.lower(), each.value) for each in opening.metadata)
        self.decode: Callable[[bytes], Any] | None = None
        self.encode: Callable[[Any], bytes] | None = None

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """What the client sent with the stream."""
        return self._metadata

    def peer(self) -> str:
        """As gRPC writes it: ipv4:10.0.0.1:4711 or ipv6:%5B::1%5D:4711."""
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        """`peer_uri`: the URIs in the client's certificate, which has been verified."""
        secured = self._connection.transport.get_extra_info("ssl_object")
        certificate = secured.getpeercert() if secured is not None else None
        names = (certificate or {}).get("subjectAltName", ())
        return {"peer_uri": [value.encode() for kind, value in names if kind == "URI"]}

    async def read(self) -> Any:
        """The next message; grpc.aio.EOF when no more follow. LostError."""
        kind, payload = await self._connection.receive()
        if kind is Kind.MESSAGE:
            return self.decode(payload) if self.decode is not None else payload
        if kind is not Kind.END:
            self._connection.fail(LostError(f"a client sends no frame of kind {kind.name} here"))
        return grpc.aio.EOF

    async def write(self, message: Any) -> None:
        """Waits while the client does not read. LostError."""
        await self._connection.send(Kind.MESSAGE, self.encode(message) if self.encode is not None else message)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """Ends the stream."""
        await self._abort(code, details, trailing_metadata)

    async def abort_with_status(self, status: Any) -> NoReturn:
        """Ends the stream."""
        await self._abort(status.code, status.details, status.trailing_metadata)

    async def _abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> NoReturn:
        given = next((bytes(value) for name, value in trailing_metadata or () if name == _DETAILS), None)
        self.end(given if given is not None else _status(code, details))
        raise grpc.aio.AbortError(details)

    def end(self, status: bytes) -> None:
        """Sends the last frame; does not wait for a client that does not read."""
        self._connection.send_last(Kind.STATUS, status)


def _status(code: grpc.StatusCode, details: str) -> bytes:
    return bytes(status_pb2.Status(code=code.value[0], message=details).SerializeToString())


def _farewell(error: BrokenFrameError) -> bytes:
    is_too_large = isinstance(error, FrameTooLargeError)
    return _status(grpc.StatusCode.RESOURCE_EXHAUSTED if is_too_large else grpc.StatusCode.INTERNAL, str(error))


_OK = _status(grpc.StatusCode.OK, "")


class StreamServer:
    """`start`, then `stop`. Streams of `methods` are played by the handlers that `handlers` gives for them."""

    def __init__(
        self, handlers: grpc.GenericRpcHandler, methods: Collection[str], max_bytes: int,
        security: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:  # fmt: skip
        """`max_bytes`: of one message. `security`: the TLS context of the next connection; None: in the clear."""
        self._handlers, self._methods, self._max_bytes, self._security = handlers, methods, max_bytes, security
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()

    async def start(self, address: str) -> int:
        """Listens on host:port; gives the port, which is chosen when it is 0. CannotStartError."""
        host, port = split_address(address)
        try:
            if host in ("", "::", "0.0.0.0") and socket.has_dualstack_ipv6():
                # As gRPC: every interface, whichever the family.
                listener = socket.create_server(
                    ("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
                )
            else:
                found = await asyncio.get_running_loop().getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)
                # One of them: an ephemeral port would differ between several.
                listener = socket.create_server(found[0][4][:2], family=found[0][0], backlog=BACKLOG)
        except OSError as error:
            raise cannot_listen(address, error) from None
        listener.setblocking(False)
        self._sockets.append(listener)
        self._start(self._accept(listener), self._tasks)
        self._start(self._beat(), self._tasks)
        return int(listener.getsockname()[1])

    async def stop(self, grace_s: float) -> None:
        """Accepts no more streams, and ends those that have not ended by themselves within this time."""
        for task in self._tasks:
            task.cancel()
        for each in self._sockets:
            each.close()
        if self._streams:
            _, left = await asyncio.wait(self._streams, timeout=grace_s)
            for task in left:
                task.cancel()
        await asyncio.gather(*self._tasks, *self._streams, return_exceptions=True)

    def _start(self, coroutine: Any, tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(lambda ended: self._over(ended, tasks))

    def _over(self, task: asyncio.Task[None], tasks: set[asyncio.Task[None]]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("framed streams: unexpected error", exc_info=error)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listener)
            except OSError as error:
                log.error("framed streams: cannot accept a connection", error=str(error))
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._connected(accepted, peer_name(accepted.family, peer)), self._streams)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for connection in list(self._connections):
                try:
                    connection.tick()
                except Exception as error:
                    # Of one connection: the others still need their beats.
                    log.error("framed streams: unexpected error", exc_info=error)
                    connection.fail(error)

    async def _connected(self, accepted: socket.socket, peer: str) -> None:
        try:
            connection = await self._secured(accepted)
        except (OSError, TimeoutError) as error:
            accepted.close()
            log.debug("framed streams: no connection", peer=peer, error=str(error))
            return
        self._connections.add(connection)
        try:
            async with asyncio.timeout(OPENING_S):
                kind, payload = await connection.receive()
            if kind is Kind.OPENING:
                opening = pb.StreamOpening.FromString(payload)
                await self._play(StreamContext(connection, opening, peer), opening.method)
        except (LostError, DecodeError, TimeoutError) as error:
            log.debug("framed streams: the connection is lost", peer=peer, error=str(error))
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _secured(self, accepted: socket.socket) -> Connection:
        security = self._security() if self._security is not None else None
        decoder = Decoder(self._max_bytes, max_opening_bytes=MAX_OPENING_BYTES)
        # Not what the method returns: with TLS, uvloop returns a protocol of its own.
        connection = Connection(decoder, beat_s=BEAT_S, silent_s=SILENT_S, farewell=_farewell)
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: connection, accepted, ssl=security,
            ssl_handshake_timeout=OPENING_S if security is not None else None,
        )  # fmt: skip
        return connection

    async def _play(self, context: StreamContext, method: str) -> None:
        details: Any = _Details(method, context.invocation_metadata())
        handler: Any = self._handlers.service(details) if method in self._methods else None
        if handler is None:
            context.end(_status(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here: use gRPC"))
            return
        context.decode, context.encode = handler.request_deserializer, handler.response_serializer
        try:
            await handler.stream_stream(None, context)
            context.end(_OK)
        except (grpc.aio.AbortError, LostError):
            # The status was sent, or there is no one to send it to.
            return
        except asyncio.CancelledError:
            context.end(_status(grpc.StatusCode.UNAVAILABLE, "this control plane is stopping"))
            raise
        except Exception as error:
            log.error("framed streams: a handler failed", method=method, exc_info=error)
            context.end(_status(grpc.StatusCode.UNKNOWN, f"internal error ({type(error).__name__})"))


def peer_name(family: int, peer: Any) -> str:
    """A peer as gRPC writes it."""
    host, port = peer[:2]
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if family == socket.AF_INET6 else f"ipv4:{host}:{port}"
