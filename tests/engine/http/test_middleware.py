"""The middleware under a real uvicorn: bytes on a socket, timers, disconnects, failures."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from agentserving.contract.response_ids import engine_of
from agentserving_engine.calls import TicketCheck
from agentserving_engine.http.answer import COMMENT
from agentserving_engine.http.dialects import Dialect
from agentserving_engine.http.entrance import Entrance
from agentserving_engine.http.middleware import Application, EngineMiddleware, Message, Receive, Send, serve
from agentserving_engine.settings import PluginConfigError
from support.eventually import eventually_async

ENGINE = "e-0"
CHAT = "/v1/chat/completions"
STREAM = json.dumps({"stream": True, "messages": []}).encode()
EVENT = b'data: {"token": 1}\n\n'
EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
KEEP_ALIVE_S = 0.05
OPEN = Entrance(lambda: TicketCheck(engine_id="e", keys=None), separate_caches=True)


@dataclass
class Played:
    """An application that vLLM's could be: reads the body, then plays its steps."""

    steps: list[object] = field(default_factory=list)
    body: bytes = b""
    received: list[str] = field(default_factory=list)
    # Set by a test that lets the application wait.
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        try:
            await self._serve(receive, send)
        finally:
            self.ended.set()

    async def _serve(self, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            self.received.append(message["type"])
            if message["type"] == "http.disconnect":
                # As FastAPI does.
                await send({"type": "http.response.start", "status": 400, "headers": []})
                await send({"type": "http.response.body", "body": b"unreadable"})
                return
            self.body += message["body"]
            more = message["more_body"]
        for step in self.steps:
            if step == "wait":
                await self.go_on.wait()
            elif step == "listen":
                self.received.append((await receive())["type"])
            elif isinstance(step, Exception):
                raise step
            elif isinstance(step, int):
                headers = EVENT_STREAM if step == 200 else [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": step, "headers": headers})
            else:
                await send({"type": "http.response.body", "body": step, "more_body": step != b""})


@asynccontextmanager
async def serving(app: Application, monkeypatch: pytest.MonkeyPatch, keep_alive_s: float) -> AsyncIterator[int]:
    """The port of a uvicorn that has loaded the middleware as vLLM does."""
    monkeypatch.setenv("AGENTSERVING_SSE_KEEP_ALIVE_S", str(keep_alive_s))
    monkeypatch.setenv("AGENTSERVING_ENGINE_ID", ENGINE)
    config = uvicorn.Config(EngineMiddleware(app), lifespan="off", log_level="critical", ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve([listener]))
        try:
            await eventually_async(lambda: server.started, "uvicorn listens")
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


def request(path: str = CHAT, body: bytes = STREAM) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Connection:
    """A client's connection; `seen` is everything that the server has sent."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: bytes = b""

    async def until(self, wanted: bytes) -> None:
        async with asyncio.timeout(20):
            while wanted not in self.seen:
                part = await self.reader.read(65_536)
                assert part, f"{wanted!r} never came: {self.seen!r}"
                self.seen += part

    async def rest(self) -> tuple[bytes, bytes, bool]:
        """(head, body without chunk framing, ended as a whole), once the server has closed the connection."""
        async with asyncio.timeout(20):
            self.seen += await self.reader.read()
        head, _, framed = self.seen.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" not in head:
            return head, framed, True
        body = b""
        while framed:
            size, _, framed = framed.partition(b"\r\n")
            length = int(size, 16)
            if not length:
                return head, body, True
            body, framed = body + framed[:length], framed[length + 2 :]
        return head, body, False


@asynccontextmanager
async def connected(port: int, data: bytes) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        yield Connection(reader, writer)
    finally:
        writer.close()


async def test_a_waiting_stream_gets_comments_and_then_its_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Played([200, "wait", EVENT, EVENT, b""])
    async with serving(app, monkeypatch, KEEP_ALIVE_S) as port, connected(port, request()) as client:
        await client.until(COMMENT + b"\r\n" + b"%x\r\n" % len(COMMENT) + COMMENT)
        app.go_on.set()
        _, body, whole = await client.rest()
        assert whole
        assert body.replace(COMMENT, b"") == EVENT * 2
        assert app.body == STREAM


async def test_a_late_head_is_opened_early_and_a_late_error_becomes_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Played(["wait", 404, b'{"error": {"message": "no such model"}}', b""])
    async with serving(app, monkeypatch, KEEP_ALIVE_S) as port, connected(port, request()) as client:
        await client.until(COMMENT)
        app.go_on.set()
        head, body, whole = await client.rest()
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"content-type: text/event-stream" in head
        assert whole
        expected = b'data: {"error":{"message":"no such model"}}\n\ndata: [DONE]\n\n'
        assert body.replace(COMMENT, b"") == expected


@pytest.mark.parametrize("keep_alive_s", [0, 60])
async def test_an_error_in_time_keeps_its_status(monkeypatch: pytest.MonkeyPatch, keep_alive_s: float) -> None:
    app = Played([404, b"{}", b""])
    async with serving(app, monkeypatch, keep_alive_s) as port, connected(port, request()) as client:
        head, body, _ = await client.rest()
        assert head.startswith(b"HTTP/1.1 404")
        assert body == b"{}"


async def test_an_application_that_fails_in_mid_stream_ends_it_with_an_error_event(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "uvicorn.error")
    app = Played([200, EVENT, RuntimeError("the engine core died")])
    async with serving(app, monkeypatch, 60) as port, connected(port, request()) as client:
        _, body, whole = await client.rest()
    assert whole
    assert body.startswith(EVENT + b'data: {"error":')
    assert body.endswith(b"data: [DONE]\n\n")


async def test_an_application_that_fails_before_its_head_is_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Played([RuntimeError("no")])
    async with serving(app, monkeypatch, 60) as port, connected(port, request()) as client:
        head, _, _ = await client.rest()
        assert head.startswith(b"HTTP/1.1 500")


async def test_a_client_that_leaves_is_seen_by_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Played([200, EVENT, "listen"])
    async with serving(app, monkeypatch, KEEP_ALIVE_S) as port:
        async with connected(port, request()) as client:
            await client.until(COMMENT)
        async with asyncio.timeout(20):
            await app.ended.wait()
        assert app.received == ["http.request", "http.disconnect"]


@pytest.mark.parametrize("size", [10, 1 << 20])
async def test_a_body_that_names_a_session_is_refused_before_the_application_has_it(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    body = b'{"session_id": "x", "prompt": "%s"}' % (b"x" * size)
    app = Played([200, b""])
    async with serving(app, monkeypatch, 60) as port, connected(port, request("/v1/messages", body)) as client:
        head, document, _ = await client.rest()
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(document)["type"] == "error"
        assert app.received[-1] == "http.disconnect"
        assert b"prompt" not in app.body or len(app.body) < len(body)


async def test_a_path_below_vllms_root_path_is_the_same_route(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Played([200, b""])

    async def mounted(scope: Message, receive: Receive, send: Send) -> None:
        await EngineMiddleware(app)({**scope, "root_path": "/api"}, receive, send)

    body = b'{"session_id": "x"}'
    async with serving(mounted, monkeypatch, 60) as port, connected(port, request("/api" + CHAT, body)) as client:
        head, _, _ = await client.rest()
        assert head.startswith(b"HTTP/1.1 400")


async def test_other_routes_and_requests_for_no_stream_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, body in (("/v1/embeddings", b'{"session_id": "x", "stream": true}'), (CHAT, b'{"stream": false}')):
        app = Played(["wait", 404, b"{}", b""])
        async with serving(app, monkeypatch, KEEP_ALIVE_S) as port, connected(port, request(path, body)) as client:
            await eventually_async(lambda app=app, body=body: app.body == body, "the application has the body")
            # Longer than the interval, in which nothing may be sent.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3 * KEEP_ALIVE_S):
                    await client.until(b"HTTP")
            app.go_on.set()
            head, answer, _ = await client.rest()
            assert head.startswith(b"HTTP/1.1 404")
            assert answer == b"{}"


async def test_a_comment_is_not_sent_while_the_application_waits_for_a_slow_client() -> None:
    """The chunk that waits is not yet written, so a comment could come between two halves of an event."""
    sending: list[Message] = []
    sent: list[bytes] = []
    readable = asyncio.Event()

    async def receive() -> Message:
        return {"type": "http.request", "body": STREAM, "more_body": False}

    async def send(message: Message) -> None:
        assert not sending, "two messages at a time"
        sending.append(message)
        if message.get("body") == b"}\n\n":
            asyncio.get_running_loop().call_later(6 * KEEP_ALIVE_S, readable.set)
            await readable.wait()
        sent.append(message.get("body", b""))
        sending.clear()

    app = Played([200, b"data: {", b"}\n\n", b""])
    await serve(app, {"type": "http"}, receive, send, dialect=Dialect.OPENAI, keep_alive_s=KEEP_ALIVE_S, entrance=OPEN)
    assert sent == [b"", b"data: {", b"}\n\n", b""]


async def test_a_comment_that_cannot_be_sent_fails_as_the_applications_own_chunk_would() -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": STREAM, "more_body": False}

    async def send(message: Message) -> None:
        if message.get("body") == COMMENT:
            app.go_on.set()
            raise BrokenPipeError("the client has left")

    app = Played([200, "wait", EVENT, b""])
    with pytest.raises(BrokenPipeError, match="the client has left"):
        await serve(
            app, {"type": "http"}, receive, send, dialect=Dialect.OPENAI, keep_alive_s=KEEP_ALIVE_S, entrance=OPEN
        )


async def test_a_request_for_a_response_gets_an_id_that_names_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = b'{"input": "x", "n": [1.50, 1e400]}'
    seen: dict[str, bytes] = {}
    for path in ("/v1/responses", "/v1/responses/resp_1/cancel", CHAT):
        app = Played([404, b"{}", b""])
        async with serving(app, monkeypatch, 0) as port, connected(port, request(path, sent)) as client:
            await client.rest()
        seen[path] = app.body
    assert seen["/v1/responses/resp_1/cancel"] == seen[CHAT] == sent
    document = json.loads(seen["/v1/responses"])
    assert engine_of(document.pop("request_id")) == ENGINE
    assert document == json.loads(sent)


async def test_only_the_first_piece_of_a_body_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVING_ENGINE_ID", "e-0")
    pieces = [b'{"input": [', b'{"a": 1},', b'{"b": 2}], "stream": true}']
    received: list[bytes] = []

    async def receive() -> Message:
        body = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(pieces)}

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            received.append(message["body"])
            more = message["more_body"]

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    later = pieces[1:]
    await EngineMiddleware(app)({"type": "http", "path": "/v1/responses"}, receive, send)
    assert received[1:] == later
    assert json.loads(b"".join(received))["input"] == [{"a": 1}, {"b": 2}]


def test_a_wrong_setting_ends_the_start_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("fast", "-1", "nan", "inf"):
        monkeypatch.setenv("AGENTSERVING_SSE_KEEP_ALIVE_S", text)
        with pytest.raises(PluginConfigError, match=f"AGENTSERVING_SSE_KEEP_ALIVE_S={text}: give seconds"):
            EngineMiddleware(Played())
