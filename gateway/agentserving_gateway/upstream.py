"""One connection to an engine, and the answers that come over it.

The head of an answer is read by httptools and written again with our headers; the body is handed on as it comes. Where
it ends is told by its content-length or, for a stream, by the engine's end of file: a call whose answer may be a stream
is sent with `Connection: close`, so no streamed token is ever parsed. After an answer that ended otherwise the
connection goes back to the pool (`upstream_pool`), which spares the next call a handshake on both sides.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol, cast

import httptools

MAX_HEAD_BYTES = 64 << 10
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "server", "date"}
_BODILESS = {204, 304}
# An engine may think for minutes, but its machine answers at once: one that is silent for so long is gone, and has sent
# no reset. Kernels answer, so a busy engine is not mistaken for one.
SILENT_S, ASK_EACH_S, ASK_TIMES = 4, 2, 3
# What every receiver's kernel takes in though nobody reads it. Of more it may take nothing for as long as the engine is
# busy, and TCP_USER_TIMEOUT would count that as silence, answers or not.
TAKEN_UNREAD_BYTES = 32 << 10


class Downstream(Protocol):
    """Who takes the answer."""

    def answer_head(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        """The head of the answer. `framed`: its end can be told without closing the connection."""
        ...

    def answer_bytes(self, data: bytes) -> None:
        """More of the body, as it goes over the wire."""
        ...

    def answer_end(self, *, complete: bool) -> None:
        """No more comes; `complete` False when the engine broke off."""
        ...


class _Answer:
    """What httptools finds: a head, and the end where nothing simpler tells it."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.reason = b""
        self.complete = False

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_message_complete(self) -> None:
        self.complete = True


def notice_silence(connection: socket.socket) -> None:
    """The connection breaks about ten seconds after its peer's machine is gone (RFC 1122 4.2.3.6, RFC 5482)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not everywhere
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ASK_EACH_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, ASK_TIMES)
        # For what was sent and not acknowledged, of which keep-alive takes no notice.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (SILENT_S + ASK_EACH_S * ASK_TIMES))


def bear_being_unread(connection: socket.socket) -> None:
    """It is not broken for what its peer's kernel does not take; what then notices silence is keep-alive alone."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)


class UpstreamConnection(asyncio.Protocol):
    """asyncio protocol towards an engine; one call at a time."""

    def __init__(self, address: str, on_idle: Callable[[UpstreamConnection], None]) -> None:
        self.address = address
        self.transport: asyncio.Transport | None = None
        self.calls = 0
        self._on_idle = on_idle
        self._downstream: Downstream | None = None
        self._reset(keep=False)

    def _reset(self, *, keep: bool) -> None:
        self._keep = keep
        self._began = False
        self._buffer = b""
        self._remaining = -1
        self._chunked = False
        self._tail = b""
        self._answer = _Answer()
        self._parser: httptools.HttpResponseParser | None = None

    def send(self, head: bytes, body: bytes, downstream: Downstream, *, keep: bool) -> None:
        """Sends a request. `keep` as the head says: False when it holds `Connection: close`."""
        assert self.transport is not None
        assert self._downstream is None
        self._reset(keep=keep)
        self._downstream = downstream
        self.calls += 1
        if len(head) + len(body) > TAKEN_UNREAD_BYTES:
            bear_being_unread(self.transport.get_extra_info("socket"))
        self.transport.write(head)
        if body:
            self.transport.write(body)

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for a call."""
        # uvloop's transports are asyncio.Transport in all but the class.
        self.transport = cast(asyncio.Transport, transport)
        notice_silence(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """The hot path: once the head is through, bytes in, bytes out."""
        if self._downstream is None:
            self._break()  # nobody asked: nothing on this connection can be trusted any more
            return
        if not self._began:
            data = self._take_head(data)
            if not data and self._remaining:
                return
        if self._chunked:
            if self._parser is not None and not self._parse(data):
                return
            self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        elif self._remaining >= 0:
            if len(data) > self._remaining:
                # More than it announced: to the client it would look like the answer to its next request.
                data, self._keep = data[: self._remaining], False
            self._remaining -= len(data)
        if data:
            self._downstream.answer_bytes(data)
        if self._remaining == 0 or self._answer.complete:
            self._end(complete=True)

    def eof_received(self) -> bool:
        """The engine has said all."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the answer, or of the engine."""
        self.transport = None
        if self._downstream is None:
            return
        if self._chunked:
            complete = self._tail == b"0\r\n\r\n"
        else:
            complete = self._remaining < 0 and exc is None and self._parser is None
        self._end(complete=complete and self._began)

    def pause_writing(self) -> None:
        """The request is in memory as a whole; nothing to hold back."""

    def resume_writing(self) -> None:
        """See pause_writing."""

    # -- an answer -----------------------------------------------------------------------------------------------

    def _take_head(self, data: bytes) -> bytes:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                self._break()
            return b""
        parser = httptools.HttpResponseParser(self._answer)
        try:
            parser.feed_data(self._buffer[: end + 4])
        except httptools.HttpParserError:
            self._break()
            return b""
        rest, self._buffer = self._buffer[end + 4 :], b""
        self._began = True
        kept = self._framing(parser)
        if self._downstream is not None:
            framed = self._chunked or self._remaining >= 0
            self._downstream.answer_head(parser.get_status_code(), self._answer.reason, kept, framed=framed)
        return rest

    def _parse(self, data: bytes) -> bool:
        try:
            if self._parser is not None:
                self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._break()
            return False
        return True

    def _framing(self, parser: httptools.HttpResponseParser) -> list[tuple[bytes, bytes]]:
        """Finds how the answer's end will be told; gives the headers to pass on."""
        kept = []
        for name, value in self._answer.headers:
            lower = name.lower().decode("latin-1")
            if lower == "content-length":
                self._remaining = int(value)
            elif lower == "transfer-encoding":
                self._chunked = True
            if lower not in _HOP_BY_HOP:
                kept.append((name, value))
        if parser.get_status_code() in _BODILESS:
            self._remaining = 0
        self._answer.complete = False
        if self._chunked:
            self._remaining = -1
            if self._keep:
                # Not announced as a stream, and no end of file will come: the parser finds the end.
                self._parser = parser
        self._keep = self._keep and parser.should_keep_alive()
        return kept

    def _end(self, *, complete: bool) -> None:
        downstream, self._downstream = self._downstream, None
        if self.transport is not None:
            if complete and self._keep:
                self.transport.resume_reading()
                self._on_idle(self)
            else:
                self.transport.close()
        if downstream is not None:
            downstream.answer_end(complete=complete)

    def _break(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def abandon(self) -> None:
        """The client is gone: closing makes the engine abort the call."""
        idle, self._downstream = self._downstream is None, None
        if self.transport is not None:
            (self.transport.close if idle else self.transport.abort)()
