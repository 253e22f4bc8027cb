"""One connection to an engine for one call.

`Connection: close` on it, so the engine's end of file is the end of the answer and no body is ever parsed: the head is
read by httptools and written again with our headers, the rest is handed on as it comes.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

MAX_HEAD_BYTES = 64 << 10
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "server", "date"}


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


class _Head:
    """Collects a response head for httptools."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.reason = b""
        self.done = False

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.done = True


class UpstreamConnection(asyncio.Protocol):
    """asyncio protocol towards an engine."""

    def __init__(self, request: bytes, body: bytes, downstream: Downstream) -> None:
        self._request, self._body, self._downstream = request, body, downstream
        self.transport: asyncio.Transport | None = None
        self.began = False
        self._buffer = b""
        self._remaining = -1
        self._chunked = False
        self._tail = b""
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the request."""
        # uvloop's transports are asyncio.Transport in all but the class.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)
        if self._body:
            self.transport.write(self._body)
        self._request = self._body = b""

    def data_received(self, data: bytes) -> None:
        """The hot path: once the head is through, bytes in, bytes out."""
        if not self.began:
            data = self._take_head(data)
            if not data:
                return
        if self._chunked:
            self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        elif self._remaining >= 0:
            self._remaining -= len(data)
        self._downstream.answer_bytes(data)
        if self._remaining == 0 and not self._over:
            # All of it is there: the engine's end of file would come later than the client's next request.
            self._over = True
            if self.transport is not None:
                self.transport.close()
            self._downstream.answer_end(complete=True)

    def _take_head(self, data: bytes) -> bytes:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                self._break()
            return b""
        head = _Head()
        parser = httptools.HttpResponseParser(head)
        try:
            parser.feed_data(self._buffer[: end + 4])
        except httptools.HttpParserError:
            self._break()
            return b""
        rest, self._buffer = self._buffer[end + 4 :], b""
        self.began = True
        kept = []
        for name, value in head.headers:
            lower = name.lower().decode("latin-1")
            if lower == "content-length":
                self._remaining = int(value)
            elif lower == "transfer-encoding":
                self._chunked = True
            if lower not in _HOP_BY_HOP:
                kept.append((name, value))
        framed = self._chunked or self._remaining >= 0
        self._downstream.answer_head(parser.get_status_code(), head.reason, kept, framed=framed)
        return rest

    def _break(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def eof_received(self) -> bool:
        """The engine has said all."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the answer, or of the engine."""
        if self._over:
            return
        self._over = True
        if self._chunked:
            complete = self._tail == b"0\r\n\r\n"
        else:
            complete = self._remaining == 0 or (self._remaining < 0 and exc is None)
        self._downstream.answer_end(complete=complete and self.began)

    def abandon(self) -> None:
        """The client is gone: closing makes the engine abort the call."""
        self._over = True
        if self.transport is not None:
            self.transport.abort()

    def pause_writing(self) -> None:
        """The request is in memory as a whole; nothing to hold back."""

    def resume_writing(self) -> None:
        """See pause_writing."""
