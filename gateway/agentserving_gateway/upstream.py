"""One connection to an engine, and the answers that come over it.

The head of an answer is parsed by httptools and written again with our headers; the body is passed on as it comes. Its
content-length or, for a stream, the engine's end of file marks its end: a call whose answer may be a stream is sent
with `Connection: close`, so streamed tokens are not parsed. The exception is a chunked answer for an HTTP/1.0 client.
After any other end of an answer the connection returns to the pool (`upstream_pool`), which spares the next call a
handshake on both sides.
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
# An engine may compute for minutes, but its kernel acknowledges probes meanwhile: a machine that is silent for so long
# is gone without a reset.
SILENT_S, PROBE_INTERVAL_S, PROBES = 4, 2, 3
# A receiver's kernel buffers at least this much although its process does not read. TCP_USER_TIMEOUT would count a
# larger request that a busy engine has not read yet as silence, answers or not.
BUFFERED_BYTES = 32 << 10


class Downstream(Protocol):
    """Takes an answer."""

    def answer_head(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        """The head. `framed`: the end of the body can be seen without closing the connection."""
        ...

    def answer_bytes(self, data: bytes) -> None:
        """More of the body, as it goes over the wire."""
        ...

    def answer_end(self, *, complete: bool) -> None:
        """No more comes; `complete` False when the engine broke off."""
        ...


class _Answer:
    """Collects what httptools finds."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.reason = b""
        self.is_complete = False
        # The body without its chunk framing.
        self.body = b""

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_complete = True


def detect_silence(connection: socket.socket) -> None:
    """Breaks the connection about ten seconds after its peer's machine is gone (RFC 1122 4.2.3.6, RFC 5482)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not everywhere
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_INTERVAL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        # For unacknowledged data, which keep-alive does not cover.
        bound_ms = 1000 * (SILENT_S + PROBE_INTERVAL_S * PROBES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, bound_ms)


def allow_unread_data(connection: socket.socket) -> None:
    """Leaves the detection of silence to keep-alive: data that the peer's kernel does not take is no silence."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)


class UpstreamConnection(asyncio.Protocol):
    """asyncio protocol towards an engine; one request at a time."""

    def __init__(self, address: str, on_idle: Callable[[UpstreamConnection], None]) -> None:
        self.address = address
        self.transport: asyncio.Transport | None = None
        self.requests = 0
        self._on_idle = on_idle
        self._downstream: Downstream | None = None
        self._reset(keep=False, unchunk=False)

    def _reset(self, *, keep: bool, unchunk: bool) -> None:
        self._keep, self._unchunk = keep, unchunk
        self._is_head_done = False
        self._buffer = b""
        self._remaining = -1
        self._chunked = False
        self._tail = b""
        self._answer = _Answer()
        self._parser: httptools.HttpResponseParser | None = None

    def send(self, head: bytes, body: bytes, downstream: Downstream, *, keep: bool, unchunk: bool = False) -> None:
        """Sends a request. `keep` as the head says: False when it contains `Connection: close`.

        `unchunk`: the answer's body is passed on without chunk framing.
        """
        assert self.transport is not None
        assert self._downstream is None
        self._reset(keep=keep, unchunk=unchunk)
        self._downstream = downstream
        self.requests += 1
        if len(head) + len(body) > BUFFERED_BYTES:
            allow_unread_data(self.transport.get_extra_info("socket"))
        self.transport.write(head)
        if body:
            self.transport.write(body)

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for a request."""
        # uvloop's transports are asyncio.Transport in all but the class.
        self.transport = cast(asyncio.Transport, transport)
        detect_silence(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """The hot path: after the head, bytes in, bytes out."""
        if self._downstream is None:
            self._break()  # bytes without a request: nothing on this connection can be trusted any more
            return
        if not self._is_head_done:
            data = self._take_head(data)
            if not data and self._remaining:
                return
        if self._chunked:
            if self._parser is not None:
                if not self._parse(data):
                    return
                if self._unchunk:
                    data, self._answer.body = self._answer.body, b""
            else:
                self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        elif self._remaining >= 0:
            if len(data) > self._remaining:
                # More than announced: to the client it would look like the answer to its next request.
                data, self._keep = data[: self._remaining], False
            self._remaining -= len(data)
        if data:
            self._downstream.answer_bytes(data)
        if self._remaining == 0 or self._answer.is_complete:
            self._end(complete=True)

    def eof_received(self) -> bool:
        """The engine has sent everything."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the answer, or of the engine."""
        self.transport = None
        if self._downstream is None:
            return
        if self._chunked:
            complete = self._parser is None and self._tail == b"0\r\n\r\n"
        else:
            complete = self._remaining < 0 and exc is None and self._parser is None
        self._end(complete=complete and self._is_head_done)

    def pause_writing(self) -> None:
        """The request is in memory as a whole, so there is nothing to pause."""

    def resume_writing(self) -> None:
        """See pause_writing."""

    # -- an answer -----------------------------------------------------------------------------------------------

    def _take_head(self, data: bytes) -> bytes:
        """Gives the bytes after the head, or b"" while it is incomplete."""
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
        self._is_head_done = True
        headers = self._framing(parser)
        if self._downstream is not None:
            framed = self._remaining >= 0 or (self._chunked and not self._unchunk)
            self._downstream.answer_head(parser.get_status_code(), self._answer.reason, headers, framed=framed)
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
        """Finds out how the answer's end will be seen; gives the headers to pass on."""
        passed_on = []
        for name, value in self._answer.headers:
            lower = name.lower().decode("latin-1")
            if lower == "content-length":
                self._remaining = int(value)
            elif lower == "transfer-encoding":
                self._chunked = True
                if self._unchunk:
                    continue
            if lower not in _HOP_BY_HOP:
                passed_on.append((name, value))
        if parser.get_status_code() in _BODILESS:
            self._remaining = 0
        self._answer.is_complete = False
        if self._chunked:
            self._remaining = -1
            if self._keep or self._unchunk:
                # Either no end of file will come, or the chunks must go: the parser finds the end.
                self._parser = parser
        self._keep = self._keep and parser.should_keep_alive()
        return passed_on

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
        """Nobody waits for the answer any more: closing makes the engine abort the call."""
        idle, self._downstream = self._downstream is None, None
        if self.transport is not None:
            (self.transport.close if idle else self.transport.abort)()
