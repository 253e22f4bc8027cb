"""One connection of a client: bytes in, one request after another, answers out.

The request is read by `request_reader` and served by an `Exchange`; this module owns the socket, its timers and its
end. What a client sends while its request is served is kept and read afterwards: a client that has the whole answer may
speak again before we have seen the engine's end of file. Two requests in one packet (pipelining) are not served: the
connection is closed after the first answer.

    READING -> SERVING -> READING ...       keep-alive
    READING -> REFUSED -> CLOSED            after a bad request nothing on the connection can be trusted
    SERVING -> CLOSED                       the client left, the answer broke off, or the connection must not go on
"""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import Enum, auto
from typing import cast

from agentserving_gateway import metrics
from agentserving_gateway.draining import Connections
from agentserving_gateway.errors import HttpError, render, response
from agentserving_gateway.exchange import Backends, Exchange
from agentserving_gateway.models import Fetched
from agentserving_gateway.request_reader import RequestReader

# Kept of a next request while one is served; beyond it we stop reading, and see the client's end at the next write.
MAX_EARLY_BYTES = 64 << 10
HEAD_DEADLINE_S, BODY_DEADLINE_S, KEEP_ALIVE_S = 10.0, 120.0, 75.0
# A client that reads nothing of its answer for so long has lost interest.
STALL_S = 600.0
# After a refusal we read on for so long: closing with unread data would reset the connection, and lose the answer.
LINGER_S = 5.0
# SO_LINGER on, for zero seconds: closing resets the connection.
RESET = struct.pack("ii", 1, 0)


class State(Enum):
    """See the module."""

    READING = auto()
    SERVING = auto()
    REFUSED = auto()
    CLOSED = auto()


class ClientConnection(asyncio.Protocol):
    """asyncio protocol towards a client. Implements exchange.Client."""

    def __init__(self, backends: Backends, max_body_bytes: int, connections: Connections) -> None:
        self._backends, self._max_body, self._connections = backends, max_body_bytes, connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._state = State.READING
        self._reader = RequestReader(max_body_bytes)
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        # Of the present answer.
        self._has_begun_answer = self._closes_after = False
        self._early = b""

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        # uvloop's transports are asyncio.Transport in all but the class.
        self._transport = cast(asyncio.Transport, transport)
        self._connections.opened(self)
        self._set_timer(HEAD_DEADLINE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or we have closed: what is being served is aborted."""
        self._set_timer(0)
        self._connections.closed(self)
        self._transport = None
        was_serving, self._state = self._state is State.SERVING, State.CLOSED
        if was_serving and self._exchange is not None:
            metrics.DISCONNECTS.inc()
            self._exchange.client_gone()
            if self._task is not None:
                self._task.cancel()

    @property
    def is_busy(self) -> bool:
        """A request is arriving or being served."""
        return self._state is State.SERVING or (self._state is State.READING and self._reader.has_begun)

    def close(self) -> None:
        """Closes the connection, whatever is under way."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._state is State.SERVING:
            self._early += data
            if len(self._early) > MAX_EARLY_BYTES and self._transport is not None:
                self._transport.pause_reading()
        elif self._state is State.READING:
            self._read(data)

    def pause_writing(self) -> None:
        """The client reads slowly: so do we."""
        self._set_timer(STALL_S)
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._state is State.SERVING:
            self._set_timer(0)
        if self._exchange is not None:
            self._exchange.resume()

    # -- reading -------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        reader = self._reader
        had_begun, had_head = reader.has_begun, reader.is_head_complete
        try:
            reader.feed(data)
        except HttpError as error:
            self._state = State.REFUSED
            self.refuse(error)
            return
        if reader.is_complete:
            self._serve()
        elif reader.is_head_complete and not had_head:
            self._set_timer(BODY_DEADLINE_S)
            if reader.expects_continue and self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif reader.has_begun and not had_begun:
            self._set_timer(HEAD_DEADLINE_S)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._too_slow) if seconds else None

    def _too_slow(self) -> None:
        if self._transport is None:
            return
        if self._state is not State.READING or self._transport.get_write_buffer_size():
            # The client does not read, so it would not see an answer.
            self._transport.abort()
        elif self._reader.has_begun:
            self._state = State.REFUSED
            self.refuse(HttpError(408, "the request took too long to arrive"))
        else:
            self._transport.close()

    # -- serving -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._state = State.SERVING
        self._has_begun_answer = False
        self._set_timer(0)
        self._exchange = Exchange(self._backends, self._reader.request, self)
        self._task = self._loop.create_task(self._exchange.serve())

    @property
    def _must_close(self) -> bool:
        """The connection ends with the present answer."""
        request = self._reader.request
        return (
            self._state is State.REFUSED or self._reader.has_more or not request.keep_alive or self._connections.leaving
        )

    def begin(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        """See Client."""
        if self._transport is None:
            return
        self._has_begun_answer = True
        self._closes_after = self._must_close or not framed
        lines = [b"HTTP/1.1 %d %s" % (status, reason)]
        lines += [name + b": " + value for name, value in headers]
        if self._closes_after:
            lines.append(b"connection: close")
        self._transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        self._count(status)

    def write(self, data: bytes) -> None:
        """See Client."""
        if self._transport is not None:
            self._transport.write(data)

    def finish(self, *, complete: bool) -> None:
        """See Client."""
        if self._transport is None:
            return
        if not complete:
            # Half an answer must not look whole. A client that reads to the end of the connection sees only a reset.
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._transport.abort()
            return
        self._end_answer()

    def refuse(self, error: HttpError) -> None:
        """See Client."""
        path = self._reader.request.path
        self._answer(error.status, render(error, path, close=self._must_close))

    def reply(self, answer: Fetched) -> None:
        """See Client."""
        whole = response(answer.status, answer.body, content_type=answer.content_type, close=self._must_close)
        self._answer(answer.status, whole)

    def _answer(self, status: int, whole: bytes) -> None:
        if self._transport is None:
            return
        if self._has_begun_answer:
            self._transport.abort()
            return
        self._closes_after = self._must_close
        self._count(status)
        if self._reader.request.method == b"HEAD":
            whole = whole[: whole.index(b"\r\n\r\n") + 4]
        self._transport.write(whole)
        self._end_answer()

    def _count(self, status: int) -> None:
        metrics.REQUESTS.labels(self._reader.request.route_name, str(status)).inc()

    def _end_answer(self) -> None:
        transport = self._transport
        if transport is None:
            return
        self._exchange = self._task = None
        if self._state is State.REFUSED and transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
            self._set_timer(LINGER_S)
        elif self._closes_after:
            self._state = State.CLOSED
            transport.close()
        else:
            self._next()

    def _next(self) -> None:
        """Keep-alive: the next request, of which some may be here."""
        self._state, self._reader = State.READING, RequestReader(self._max_body)
        self._set_timer(KEEP_ALIVE_S)
        early, self._early = self._early, b""
        if early and self._transport is not None:
            self._transport.resume_reading()
            self.data_received(early)
