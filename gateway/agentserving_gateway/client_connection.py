"""One client connection: heads by httptools, one call at a time, answers spliced.

Limits come first: a head that is too large or too slow, a body over the limit, lengths that contradict each other are
answered and the connection closed, before anything is forwarded. What a client sends while its call runs is kept and
served after it: a client that has the whole answer may speak again before we have seen the engine's end of file. Two
requests in one packet (pipelining) are not: the connection is closed after the first answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

import httptools
import structlog
from agentserving.v1 import types_pb2

from agentserving_gateway import metrics
from agentserving_gateway.admission import Admission, Admitted
from agentserving_gateway.draining import Connections
from agentserving_gateway.errors import HttpError, render
from agentserving_gateway.identity import identify
from agentserving_gateway.request import ROUTES, Request, upstream_head
from agentserving_gateway.upstream import UpstreamConnection
from agentserving_gateway.upstream_pool import UpstreamPool

log = structlog.get_logger()

MAX_HEAD_BYTES = 64 << 10
# Kept of a next request while a call runs; beyond it we stop reading, and hear that the client left at the next write.
MAX_EARLY_BYTES = 64 << 10
HEAD_DEADLINE_S, BODY_DEADLINE_S, KEEP_ALIVE_S = 10.0, 120.0, 75.0
# A client that takes nothing of its answer for so long has lost interest.
STALL_S = 600.0
# After a refusal we read on for so long: closing at once would reset the connection, and with it the answer.
LINGER_S = 5.0
MAX_ATTEMPTS = 3


class ClientConnection(asyncio.Protocol):
    """asyncio protocol towards a client; also the Downstream of its call."""

    def __init__(
        self, admission: Admission, pool: UpstreamPool, max_body_bytes: int, connections: Connections
    ) -> None:  # fmt: skip
        self._admission, self._pool, self._max_body = admission, pool, max_body_bytes
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._upstream: UpstreamConnection | None = None
        self._admitted: Admitted | None = None
        self._close_after = False
        self._failed = False
        self._retry: asyncio.Future[bool] | None = None
        self._early = b""
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._head_bytes = 0
        self._busy = False
        self._answered = False

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        # uvloop's transports are asyncio.Transport in all but the class.
        self._transport = cast(asyncio.Transport, transport)
        self._connections.opened(self)
        self._set_timer(HEAD_DEADLINE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: its call is aborted in the engine."""
        self._set_timer(0)
        self._connections.closed(self)
        self._transport = None
        if self._busy:
            metrics.DISCONNECTS.inc()
            if self._upstream is not None:
                self._upstream.abandon()
            if self._task is not None and not self._task.done():
                self._task.cancel()

    @property
    def is_busy(self) -> bool:
        """A request is arriving or being served."""
        return self._busy or self._request.started

    def close(self) -> None:
        """Whatever is under way."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._failed:
            return
        if self._busy:
            self._keep_early(data)
            return
        if not self._request.head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self._request.head_done:
                self._check_head(self._head_bytes)
        except HttpError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, HttpError) else HttpError(400, f"malformed HTTP request: {error}"))

    def _keep_early(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > MAX_EARLY_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The client reads slowly: so do we."""
        self._set_timer(STALL_S)
        if self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._busy:
            self._set_timer(0)
        if self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.resume_reading()

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._too_slow) if seconds else None

    def _too_slow(self) -> None:
        if self._transport is not None and (self._busy or self._failed or self._transport.get_write_buffer_size()):
            # It does not read, so nothing that we say would be heard.
            self._transport.abort()
        elif self._request.started:
            self._refuse(HttpError(408, "the request took too long to arrive"))
        elif self._transport is not None:
            self._transport.close()

    # -- httptools -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins; a second one in the same bytes waits for a new connection."""
        if self._busy:
            self._close_after = True
        else:
            self._request.started = True
            self._set_timer(HEAD_DEADLINE_S)

    def on_url(self, url: bytes) -> None:
        """Target of the request."""
        if not self._busy:
            self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; or, after the head, a trailer of a chunked body, which is nobody's header."""
        request = self._request
        if self._busy or request.head_done:
            return
        request.headers.append((name, value))
        if b"\n" in value or b"\r" in value:
            raise HttpError(400, "a folded header line is not accepted")
        request.head_bytes += len(name) + len(value) + 4
        self._check_head(request.head_bytes + len(request.target))

    def _check_head(self, size: int) -> None:
        if size > MAX_HEAD_BYTES:
            raise HttpError(431, f"request head: at most {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """The head is whole: refuse early what would be refused anyway."""
        if self._busy:
            return
        request = self._request
        request.head_done = True
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        self._set_timer(BODY_DEADLINE_S)
        request.check(self._max_body)
        if request.header("expect").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Part of the body, unchunked."""
        if self._busy:
            return
        self._request.body += body
        if len(self._request.body) > self._max_body:
            raise HttpError(413, f"request body: at most {self._max_body} bytes", code="body_too_large")

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._busy or self._failed:
            return
        self._busy = True
        self._set_timer(0)
        self._task = self._loop.create_task(self._serve(self._request))

    # -- the call ------------------------------------------------------------------------------------------------

    async def _serve(self, request: Request) -> None:
        metrics.OPEN.inc()
        try:
            await self._run(request)
        except HttpError as error:
            self._answer_error(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("call failed in the gateway")
            self._answer_error(HttpError(500, "the gateway failed on this call", "server_error", "internal"))
        finally:
            metrics.OPEN.dec()

    async def _run(self, request: Request) -> None:
        if not ROUTES[request.path].managed:
            await self._pass_on(request)
            return
        began = time.perf_counter()
        request.check_body()
        identity = identify(request.header_map(), bytes(request.body))
        metrics.IDENTITIES.labels(identity.source).inc()
        tried: list[str] = []
        previous = ""
        for _ in range(MAX_ATTEMPTS):
            try:
                admitted = await self._admission.admit(
                    identity, request.tenant(), len(request.body) // 4, retry_of=previous, exclude=tuple(tried)
                )
            except HttpError:
                if not tried:
                    raise
                # Nobody else can take it: what the client should hear is what went wrong with those that were tried.
                break
            metrics.ADMIT_SECONDS.observe(time.perf_counter() - began)
            try:
                if await self._attempt(request, admitted):
                    return
            except asyncio.CancelledError:
                if not (self._upstream and self._upstream.transport):
                    self._admission.ended(admitted.call_id, types_pb2.OUTCOME_CANCELLED, never_started=True)
                raise
            tried.append(admitted.engine_id)
            previous = admitted.call_id
            metrics.RETRIES.inc()
        self._admission.ended(previous, types_pb2.OUTCOME_FAILED, never_started=True)
        raise HttpError(502, f"no engine answered (tried {', '.join(tried)})", "server_error", "engine_unreachable")

    async def _pass_on(self, request: Request) -> None:
        for engine in self._admission.engines:
            if await self._attempt(request, Admitted(engine.engine_id, engine.address)):
                return
        raise HttpError(503, "no engine is reachable", "server_error", "no_engine", retry_after_s=1.0)

    async def _attempt(self, request: Request, admitted: Admitted) -> bool:
        """True when the engine has answered with at least a head; False when nothing came and another may be tried."""
        self._admitted = admitted
        keep = not request.may_stream()
        head, body = upstream_head(request, admitted, keep=keep), bytes(request.body)
        while True:
            upstream = self._pool.take(admitted.engine_address)
            try:
                upstream = upstream or await self._pool.connect(admitted.engine_address)
            except (OSError, TimeoutError):
                return False
            if self._transport is None:
                upstream.abandon()
                return True
            self._upstream, self._retry = upstream, self._loop.create_future()
            upstream.send(head, body, self, keep=keep)
            if await self._retry:
                return True
            if upstream.calls == 1:
                return False
            # An idle connection that the engine closed in the same moment says nothing of the engine: once more.

    # -- Downstream ----------------------------------------------------------------------------------------------

    def answer_head(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        """See Downstream."""
        if self._retry is not None and not self._retry.done():
            self._retry.set_result(True)
        if self._admitted is not None and 400 <= status < 500:
            # Refused by the engine's front: its scheduler never saw the call and will not report it.
            self._admission.ended(self._admitted.call_id, types_pb2.OUTCOME_FAILED, never_started=True)
        if self._transport is None or self._admitted is None:
            return
        self._answered = True
        self._close_after |= not framed or not self._request.keep_alive or self._connections.leaving
        lines = [b"HTTP/1.1 %d %s" % (status, reason)]
        lines += [name + b": " + value for name, value in headers]
        for name, value in (
            ("program-id", self._admitted.program_id),
            ("call-id", self._admitted.call_id),
            ("engine", self._admitted.engine_id),
        ):
            if value:
                lines.append(f"x-agentserving-{name}: {value}".encode())
        if self._close_after:
            lines.append(b"connection: close")
        self._transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        metrics.REQUESTS.labels(self._request.path, str(status)).inc()

    def answer_bytes(self, data: bytes) -> None:
        """See Downstream."""
        if self._transport is not None:
            self._transport.write(data)

    def answer_end(self, *, complete: bool) -> None:
        """See Downstream."""
        # It may serve somebody else's call already.
        self._upstream = None
        if self._retry is not None and not self._retry.done():
            # The engine hung up without a word and the client has seen nothing: another may be tried.
            self._retry.set_result(False)
            return
        if self._transport is None:
            return
        if not complete:
            # Half an answer must not look whole.
            self._transport.abort()
            return
        self._finish()

    def _finish(self) -> None:
        if self._transport is None:
            return
        if self._failed and self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
            self._set_timer(LINGER_S)
            return
        if self._close_after or not self._request.keep_alive:
            self._transport.close()
            return
        self._begin()
        self._set_timer(KEEP_ALIVE_S)
        if self._early:
            early, self._early = self._early, b""
            self._transport.resume_reading()
            self.data_received(early)

    def _answer_error(self, error: HttpError) -> None:
        if self._transport is None:
            return
        if self._answered:
            self._transport.abort()
            return
        self._close_after |= self._connections.leaving
        path = self._request.path
        metrics.REQUESTS.labels(path if path in ROUTES else "other", str(error.status)).inc()
        answer = render(error, path, close=self._close_after or not self._request.keep_alive)
        if self._request.method == b"HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._transport.write(answer)
        self._finish()

    def _refuse(self, error: HttpError) -> None:
        """Answers and closes: after a bad request nothing on this connection can be trusted."""
        if self._failed or self._transport is None:
            return
        if self._busy:
            # What is wrong came after a request that was right: that one is served, and no other.
            self._close_after = True
            return
        self._failed = self._close_after = True
        self._answer_error(error)
