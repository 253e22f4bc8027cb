"""The ASGI shell around `Answer`: vLLM loads `EngineMiddleware` by `--middleware`, the simulator calls `serve`.

vLLM's disconnect detection reads `receive` itself, so `receive` stays a plain pass-through once the body has arrived.
The timer of a stream is not restarted for each chunk: when it fires it looks at the time of the last chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from agentserving.contract.engine_http import RESPONSES
from agentserving.contract.pod_secret import made_pod_secret
from agentserving.contract.response_ids import response_id

from agentserving_engine.boot import read_boot
from agentserving_engine.calls.tickets import TicketCheck
from agentserving_engine.clock import now_us
from agentserving_engine.http.answer import Answer, Chunk, Head
from agentserving_engine.http.dialects import Dialect, dialect_of
from agentserving_engine.http.doors import TICKET_HEADER, check
from agentserving_engine.http.entrance import Entrance, Entry, RefusedEntryError
from agentserving_engine.http.ranks import RANK_HEADER, Ranks
from agentserving_engine.http.request_body import RefusedBodyError, asks_for_a_stream, with_salt
from agentserving_engine.http.response_id import marked
from agentserving_engine.settings import HttpSettings, PluginConfigError, PluginSettings

logger = logging.getLogger("vllm.agentserving")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
TENANT = b"x-agentserving-tenant"
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class EngineMiddleware:
    """Starlette constructs it when the server starts. Reads the environment; raises PluginConfigError."""

    def __init__(self, app: Application) -> None:
        self._app = app
        settings = HttpSettings.from_env(os.environ)
        self._keep_alive_s, self._engine_id = settings.sse_keep_alive_s, settings.engine_id
        plugin = PluginSettings.from_env(os.environ)
        self._entrance = entrance_of(plugin)
        self._ranks = Ranks(plugin.ranks) if plugin.ranks > 1 else None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = _route(scope)
        dialect = dialect_of(path)
        try:
            check(scope.get("method", ""), path, scope.get("headers", ()), self._entrance, time.time())
        except RefusedEntryError as error:
            await _refuse(scope, send, dialect or Dialect.OPENAI, error)
            return
        if dialect is None:
            await self._app(scope, receive, send)
            return
        named = response_id(self._engine_id, uuid.uuid4().hex, _tenant(scope)) if path == RESPONSES else ""
        await serve(
            self._app, scope, receive, send,
            dialect=dialect, keep_alive_s=self._keep_alive_s, entrance=self._entrance, response=named,
            ranks=self._ranks,
        )  # fmt: skip


def entrance_of(settings: PluginSettings) -> Entrance:
    """The entrance of a process that accepts requests; the engine process writes its boot before they come."""
    check = settings.ticket_check("")

    def current() -> TicketCheck:
        nonlocal check
        if not check.boot_id and settings.channel_dir is not None:
            check = settings.ticket_check(read_boot(settings.channel_dir))
        return check

    return Entrance(current, separate_caches=settings.separate_caches, pod_secret=pod_secret_of(settings))


def pod_secret_of(settings: PluginSettings) -> str | None:
    """The secret by which the sidecar reads metrics; None where there is no sidecar. Raises PluginConfigError."""
    if settings.channel_dir is None:
        return None
    try:
        return made_pod_secret(settings.channel_dir)
    except OSError as error:
        raise PluginConfigError(f"AGENTSERVING_CHANNEL_DIR={settings.channel_dir}: {error.strerror}") from error


async def _refuse(scope: MutableMapping[str, Any], send: Send, dialect: Dialect, error: RefusedEntryError) -> None:
    if scope["type"] == "websocket":
        # The server answers 403.
        await send({"type": "websocket.close"})
        return
    refusal = RefusedBodyError(error.message, param=None, code=error.code, status=403)
    for each in Answer(dialect, 0.0).refuse(refusal):
        await send(_message(each))


def _tenant(scope: MutableMapping[str, Any]) -> str:
    """Whom the gateway has let in; it takes the header from no client. ASGI's names are in lower case."""
    return next((value.decode("latin-1") for name, value in scope.get("headers", ()) if name == TENANT), "")


def _route(scope: MutableMapping[str, Any]) -> str:
    """The path without vLLM's `--root-path`, as Starlette's router matches it."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path


async def serve(
    app: Application,
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
    *,
    dialect: Dialect,
    keep_alive_s: float,
    entrance: Entrance,
    response: str = "",
    ranks: Ranks | None = None,
) -> None:
    """Runs `app` for one request of a generating route. Exceptions of `app` propagate, after the stream was ended.

    `response`: the id of the response that the request asks for; empty = the application chooses it. `ranks`: of a
    data-parallel engine; None = it has one scheduler.
    """
    answer = Answer(dialect, keep_alive_s)
    try:
        entry = _enter(scope, entrance)
    except RefusedEntryError as error:
        await _refuse(scope, send, dialect, error)
        return
    exchange = _Exchange(answer, entry, receive, send, response, threads=dialect is not Dialect.MESSAGES)
    with _placed(scope, entry, ranks):
        try:
            await app(scope, exchange.receive, exchange.send)
        finally:
            await exchange.end()


@contextlib.contextmanager
def _placed(scope: MutableMapping[str, Any], entry: Entry, ranks: Ranks | None) -> Iterator[None]:
    """The request's head names the rank of its program while the block runs; what a client says is replaced."""
    if ranks is None:
        yield
        return
    rank = ranks.begin(entry.program, now_us())
    kept = [(name, value) for name, value in scope.get("headers", ()) if name.lower() != RANK_HEADER]
    scope["headers"] = [*kept, (RANK_HEADER, b"%d" % rank)]
    try:
        yield
    finally:
        ranks.end(entry.program, rank, now_us())


def _enter(scope: MutableMapping[str, Any], entrance: Entrance) -> Entry:
    """Replaces the ticket in the request's head. What is done with a stored response runs nothing."""
    headers = list(scope.get("headers", ()))
    if scope.get("method", "POST") != "POST" or _route(scope).startswith(RESPONSES + "/"):
        return Entry(None, "")
    tickets = [value for name, value in headers if name.lower() == TICKET_HEADER]
    # vLLM reads the first of several.
    text = tickets[0].decode("latin-1") if tickets else None
    try:
        entry = entrance.enter(text, now_us(), time.time())
    finally:
        for line in entrance.rejections.take_lines():
            logger.warning("agentserving: %s", line)
    kept = [(name, value) for name, value in headers if name.lower() != TICKET_HEADER]
    if entry.session_id is not None:
        kept.append((TICKET_HEADER, entry.session_id.encode("latin-1")))
    scope["headers"] = kept
    return entry


class _Exchange:
    """One request and its answer."""

    __slots__ = (
        "_answer",
        "_busy",
        "_chunks",
        "_comment",
        "_complete",
        "_entry",
        "_loop",
        "_receive",
        "_response",
        "_send",
        "_threads",
        "_time",
        "_timer",
    )

    def __init__(
        self, answer: Answer, entry: Entry, receive: Receive, send: Send, response: str, *, threads: bool
    ) -> None:
        self._threads = threads
        self._answer, self._entry, self._receive, self._send = answer, entry, receive, send
        # Still to be put into the body.
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._chunks: list[bytes] = []
        # The request's body has arrived.
        self._complete = False
        # The application is in `send`, perhaps waiting for a slow client.
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        """The application's `receive`."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._answer.client_left()
            elif not self._complete:
                if data := message.get("body", b""):
                    self._chunks.append(data)
                    if not self._entry.salt:
                        message = self._named(message)
                if not message.get("more_body", False):
                    return await self._body_complete(message)
                if self._entry.salt:
                    # The whole body is passed on in one piece, with the salt.
                    continue
            return message

    async def _body_complete(self, message: Message) -> Message:
        self._complete = True
        chunks, self._chunks = self._chunks, []
        try:
            stream = asks_for_a_stream(chunks, threads=self._threads)
        except RefusedBodyError as error:
            for each in self._answer.refuse(error):
                await self._send(_message(each))
            # The application gives up, and whatever it still sends is dropped.
            return {"type": "http.disconnect"}
        self._answer.request_complete(stream=stream, now=self._time())
        self._arm()
        if self._entry.salt:
            return self._named({**message, "body": with_salt(b"".join(chunks), self._entry.salt)})
        return message

    def _named(self, message: Message) -> Message:
        """The message with the response's id in its body, if that is still to be put there."""
        if not self._response:
            return message
        name, self._response = self._response, ""
        return {**message, "body": marked(message["body"], name)}

    async def send(self, message: Message) -> None:
        """The application's `send`."""
        if self._comment is not None:
            await self._comment_sent(self._comment)
        kind = message["type"]
        if kind == "http.response.body":
            data = message.get("body", b"")
            passed = self._answer.chunk(data, last=not message.get("more_body", False), now=self._time())
            if passed is None:
                return
            if passed is not data:
                message = {**message, "body": passed}
        elif kind == "http.response.start":
            passed_on = self._answer.head(message["status"], message.get("headers", ()), self._time())
            self._arm()
            if not passed_on:
                return
        self._busy = True
        await self._send(message)
        self._busy = False

    async def end(self) -> None:
        """The application is done: ends a stream that it has left open."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Servers may raise it when the client has left.
        with contextlib.suppress(OSError):
            if self._comment is not None:
                await self._comment_sent(self._comment)
            closing = self._answer.application_ended()
            if closing is not None:
                await self._send(_message(closing))

    def _arm(self) -> None:
        due = self._answer.due_at
        if self._timer is None and due is not None:
            self._timer = self._loop.call_at(due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        due = self._answer.due_at
        if due is None:
            return
        now = self._time()
        if now < due:
            self._arm()
        elif self._busy:
            # The client does not read: it has bytes to come, and a comment could split an event.
            self._timer = self._loop.call_at(now + 1.0, self._fire)
        else:
            self._comment = self._loop.create_task(self._send_due(now))

    async def _send_due(self, now: float) -> None:
        for each in self._answer.tick(now):
            await self._send(_message(each))
        self._arm()

    async def _comment_sent(self, comment: asyncio.Task[None]) -> None:
        """Messages are sent one at a time; a failure to send a comment is the application's, as its own would be."""
        self._comment = None
        await comment


def _message(item: Head | Chunk) -> Message:
    if isinstance(item, Head):
        return {"type": "http.response.start", "status": item.status, "headers": list(item.headers)}
    return {"type": "http.response.body", "body": item.data, "more_body": not item.last}
