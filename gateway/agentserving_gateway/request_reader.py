"""Bytes of a connection in, one request out. No I/O.

Limits come first: a head that is too large, a body over the limit and lengths that contradict each other are refused
before anything is forwarded.
"""

from __future__ import annotations

import httptools

from agentserving_gateway.errors import HttpError
from agentserving_gateway.request import Request, too_large

MAX_HEAD_BYTES = 64 << 10


class RequestReader:
    """Reads one request; make a new one for the next. `feed` until `is_complete`."""

    def __init__(self, max_body_bytes: int) -> None:
        self.request = Request()
        self.has_begun = False
        self.is_head_complete = False
        self.is_complete = False
        # Another request came in the same bytes (pipelining).
        self.has_more = False
        self._max_body = max_body_bytes
        # Received before the end of the head was seen, and parsed of it.
        self._head_bytes = 0
        self._parsed_bytes = 0
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        """More bytes. HttpError says what is wrong with them."""
        if not self.is_head_complete:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self.is_complete:
                # What is wrong came after a request that was right: that one is served, and no other.
                self.has_more = True
                return
            cause = error.__context__
            if isinstance(cause, HttpError):
                raise cause from None
            raise HttpError(400, f"malformed HTTP request: {error}") from None
        if not self.is_head_complete:
            _check_head(self._head_bytes)

    @property
    def expects_continue(self) -> bool:
        """The client waits for 100 Continue before it sends its body."""
        return self.request.header(b"expect").lower() == b"100-continue" and not self.request.is_http_1_0

    # -- httptools -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins; a second one in the same bytes is left for a new connection."""
        if self.is_complete:
            self.has_more = True
        self.has_begun = True

    def on_url(self, url: bytes) -> None:
        """Part of the target."""
        if not self.is_complete:
            self.request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; or, after the head, a trailer of a chunked body, which is dropped."""
        request = self.request
        if self.is_head_complete:
            return
        request.headers.append((name, value))
        if b"\n" in value or b"\r" in value:
            raise HttpError(400, "a folded header line is not accepted: send it on one line")
        self._parsed_bytes += len(name) + len(value) + 4
        _check_head(self._parsed_bytes + len(request.target))

    def on_headers_complete(self) -> None:
        """The head is complete: refuse now what would be refused anyway."""
        if self.is_complete:
            return
        request = self.request
        self.is_head_complete = True
        request.method = self._parser.get_method()
        request.is_http_1_0 = self._parser.get_http_version() == "1.0"
        # An HTTP/1.0 client takes the end of the connection for the end of an answer.
        request.keep_alive = self._parser.should_keep_alive() and not request.is_http_1_0
        request.check(self._max_body)

    def on_body(self, body: bytes) -> None:
        """Part of the body, unchunked."""
        if self.is_complete:
            return
        self.request.body += body
        if len(self.request.body) > self._max_body:
            raise too_large(self._max_body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self.is_complete = True


def _check_head(size: int) -> None:
    if size > MAX_HEAD_BYTES:
        raise HttpError(431, f"request head: at most {MAX_HEAD_BYTES} bytes; send fewer or shorter headers")
