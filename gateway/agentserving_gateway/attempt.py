"""One request sent to one engine, until its answer begins or another engine may be tried.

An answer of 500, 502, 503 or 504 can be held back: the caller may try elsewhere and, when no other engine takes the
request, release it.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Protocol

from agentserving_gateway.request import Request, upstream_head
from agentserving_gateway.upstream import UpstreamConnection
from agentserving_gateway.upstream_pool import UpstreamPool

# The engine, or something on its way, failed: another one may do better.
SERVER_ERRORS = frozenset((500, 502, 503, 504))


class Verdict(Enum):
    """What became of an attempt."""

    # The sink has the head, and gets the rest.
    ANSWERED = auto()
    # The engine answered with a server error, which waits for `release` or `abandon`.
    HELD = auto()
    # The connection broke before an answer: the engine may have seen the request.
    BROKEN = auto()
    # No connection: the engine has not seen the request.
    UNREACHABLE = auto()


class Sink(Protocol):
    """Takes the answer of an attempt."""

    def begin(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        """The head. `framed`: the end of the body can be seen without closing the connection."""

    def write(self, data: bytes) -> None:
        """More of the body."""

    def finish(self, *, complete: bool) -> None:
        """No more comes; `complete` False when the engine broke off."""


class Attempt:
    """`run` it once. Implements upstream.Downstream."""

    def __init__(self, pool: UpstreamPool, request: Request, address: str, sink: Sink) -> None:
        self.is_sent = False
        self._pool, self._request, self._address, self._sink = pool, request, address, sink
        self._upstream: UpstreamConnection | None = None
        self._verdict: asyncio.Future[Verdict] | None = None
        self._hold_errors = False
        self._held: tuple[int, bytes, list[tuple[bytes, bytes]], bool] | None = None
        self._held_bytes = b""
        self._held_end: bool | None = None

    async def run(
        self, *, ticket: str = "", call_id: str = "", may_stream: bool = False, hold_errors: bool = False,
        unchunk: bool = False,
    ) -> Verdict:  # fmt: skip
        """Sends the request. `may_stream`: its answer may be a stream, so the connection is not used again."""
        self._hold_errors = hold_errors
        request, keep = self._request, not may_stream
        head = upstream_head(request, self._address, keep=keep, ticket=ticket, call_id=call_id)
        body = bytes(request.body)
        while True:
            upstream = self._pool.take(self._address)
            try:
                upstream = upstream or await self._pool.connect(self._address)
            except (OSError, TimeoutError):
                return Verdict.BROKEN if self.is_sent else Verdict.UNREACHABLE
            self._upstream, self._verdict = upstream, asyncio.get_running_loop().create_future()
            self.is_sent = True
            upstream.send(head, body, self, keep=keep, unchunk=unchunk or request.is_http_1_0)
            verdict = await self._verdict
            if verdict is not Verdict.BROKEN or upstream.requests == 1:
                return verdict
            # An idle connection that the engine closed in the same moment says nothing about the engine: reconnect.

    @property
    def is_held(self) -> bool:
        """A server error waits for `release`."""
        return self._held is not None

    def pause(self) -> None:
        """The client reads slowly."""
        if self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if self._held is None and self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.resume_reading()

    def release(self) -> None:
        """Passes on the answer that was held back."""
        assert self._held is not None
        status, reason, headers, framed = self._held
        self._held = None
        self._sink.begin(status, reason, headers, framed=framed)
        if self._held_bytes:
            self._sink.write(self._held_bytes)
        if self._held_end is not None:
            self._sink.finish(complete=self._held_end)
        else:
            self.resume()

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        upstream, self._upstream, self._held = self._upstream, None, None
        if upstream is not None:
            upstream.abandon()

    # -- Downstream ----------------------------------------------------------------------------------------------

    def answer_head(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        """See Downstream."""
        if self._hold_errors and status in SERVER_ERRORS:
            self._held = status, reason, headers, framed
            self.pause()
            self._decide(Verdict.HELD)
            return
        self._sink.begin(status, reason, headers, framed=framed)
        self._decide(Verdict.ANSWERED)

    def answer_bytes(self, data: bytes) -> None:
        """See Downstream."""
        if self._held is not None:
            self._held_bytes += data
        else:
            self._sink.write(data)

    def answer_end(self, *, complete: bool) -> None:
        """See Downstream."""
        # It may serve another request already.
        self._upstream = None
        if self._held is not None:
            self._held_end = complete
        elif not self._decide(Verdict.BROKEN):
            self._sink.finish(complete=complete)

    def _decide(self, verdict: Verdict) -> bool:
        """False when it has been decided before."""
        if self._verdict is None or self._verdict.done():
            return False
        self._verdict.set_result(verdict)
        return True
