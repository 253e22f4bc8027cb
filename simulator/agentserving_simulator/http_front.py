"""The HTTP paths of the simulated engine: OpenAI's and Anthropic's, streamed or not.

Calls are answered as an ASGI application, so that they go through the middleware that vLLM's do: keep-alive comments,
error events, refused bodies, ids of responses.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from agentserving.contract.engine_http import RESPONSES
from agentserving.contract.response_ids import response_id
from agentserving_engine.http import doors
from agentserving_engine.http.dialects import Dialect, dialect_of, error_document
from agentserving_engine.http.doors import TICKET_HEADER
from agentserving_engine.http.entrance import Entrance, RefusedEntryError
from agentserving_engine.http.middleware import TENANT, Receive, Send
from agentserving_engine.settings import SSE_KEEP_ALIVE_S
from aiohttp import web

from agentserving_simulator import faults
from agentserving_simulator.aiohttp_exchange import ABORT, respond
from agentserving_simulator.answers.asked import Asked, BadRequestError, document
from agentserving_simulator.answers.behaviour import Behaviour
from agentserving_simulator.dialects import (
    chat,
    chat_answer,
    completions,
    embeddings,
    messages,
    messages_answer,
    responses,
    responses_answer,
)
from agentserving_simulator.dialects.reply import Heading, Whole, Writer, WriterFactory
from agentserving_simulator.engine import SimulatedEngine
from agentserving_simulator.generation import Generation

# Larger bodies are read in another OS thread: the loop makes the engine's steps.
LARGE_BODY_BYTES = 64 << 10
FAULT_HEADER = faults.HEADER.encode()

Found = TypeVar("Found")


class _CutError(Exception):
    """An injected fault closes the connection here."""


@dataclass(frozen=True, slots=True)
class Api:
    """How a path reads its requests and writes its answers."""

    parse: Callable[[dict[str, Any], int], Asked]
    whole: Whole
    writer: WriterFactory


APIS = {
    "/v1/chat/completions": Api(chat.parse, chat_answer.whole, chat_answer.ChatWriter),
    "/v1/completions": Api(completions.parse, completions.whole, completions.CompletionsWriter),
    RESPONSES: Api(responses.parse, responses_answer.whole, responses_answer.ResponsesWriter),
    "/v1/messages": Api(messages.parse, messages_answer.whole, messages_answer.MessagesWriter),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How an engine answers. `keep_alive_s` is the longest silence of a stream; 0 = no limit."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    faults: tuple[faults.Fault, ...] = ()
    fault_seed: int = 0
    keep_alive_s: float = SSE_KEEP_ALIVE_S


class Front:
    """HTTP handlers of one engine."""

    def __init__(
        self, engine: SimulatedEngine, model: str, entrance: Entrance, conduct: Conduct, engine_id: str = ""
    ) -> None:
        self._engine, self._model, self._entrance, self._conduct = engine, model, entrance, conduct
        self._engine_id = engine_id
        self._numbers = itertools.count()

    def app(self) -> web.Application:
        """The aiohttp application."""
        # No limit, as in vLLM: the front has one.
        app = web.Application(client_max_size=0, middlewares=[_enveloped, self._guarded])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{model:.+}", self._one_model),
                web.post("/v1/messages/count_tokens", self._count_tokens),
                web.post("/v1/embeddings", self._embeddings),
                *(web.post(path, self._generate) for path in APIS),
            ]
        )
        return app

    @web.middleware
    async def _guarded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """As the middleware in vLLM: what is no call is closed as well."""
        headers = [(name.lower(), value) for name, value in request.raw_headers]
        try:
            doors.check(request.method, request.path, headers, self._entrance, time.time())
        except RefusedEntryError as error:
            dialect = dialect_of(request.path) or Dialect.OPENAI
            text = error_document(dialect, 403, error.message, param=None, code=error.code)
            return web.Response(body=text, status=403, content_type="application/json")
        return await handler(request)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    def _model_entry(self) -> dict[str, Any]:
        limit = self._engine.limits.max_model_len
        return {"id": self._model, "object": "model", "created": 0, "owned_by": "agentserving", "max_model_len": limit}

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model_entry()]})

    async def _one_model(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != self._model:
            raise web.HTTPNotFound(reason=f"this engine serves {self._model}")
        return web.json_response(self._model_entry())

    async def _count_tokens(self, request: web.Request) -> web.Response:
        def count(body: dict[str, Any]) -> dict[str, Any]:
            return {"input_tokens": len(messages.prompt(body, self._engine.limits.max_model_len))}

        return await self._read_only(request, count, Dialect.MESSAGES)

    async def _embeddings(self, request: web.Request) -> web.Response:
        def respond_to(body: dict[str, Any]) -> dict[str, Any]:
            return embeddings.respond(body, self._model, self._engine.limits.max_model_len)

        return await self._read_only(request, respond_to, Dialect.OPENAI)

    async def _read_only(
        self, request: web.Request, read: Callable[[dict[str, Any]], dict[str, Any]], dialect: Dialect
    ) -> web.Response:
        """Answers without the engine."""
        body = await request.read()
        try:
            found = await _apart(body, lambda: read(self._document(body)[0]))
        except BadRequestError as error:
            text = error_document(dialect, error.status, str(error), param=error.param, code=None)
            return web.Response(body=text, status=error.status, content_type="application/json")
        return web.json_response(found)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        named = ""
        if request.path == RESPONSES:
            tenant = request.headers.get(TENANT.decode(), "")
            named = response_id(self._engine_id, uuid.uuid4().hex, tenant)
        return await respond(request, self._call, self._conduct.keep_alive_s, self._entrance, named)

    async def _call(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """The ASGI application of the generating paths."""
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body: bytes = message["body"]
        api, dialect = APIS[scope["path"]], dialect_of(scope["path"])
        assert dialect is not None, scope["path"]
        try:
            found, asked, hit = await _apart(body, lambda: self._read(api, body, scope["headers"]))
            if await _refused(send, dialect, hit):
                return
            heading = self._heading(found)
            generation = Generation(
                self._engine, asked, self._conduct.behaviour, int(heading.unique, 16), f"sim-{heading.unique}"
            )
        except BadRequestError as error:
            text = error_document(dialect, error.status, str(error), param=error.param, code=None)
            await _send(send, text, error.status)
            return
        session = dict(scope["headers"]).get(TICKET_HEADER, b"").decode("latin-1")
        try:
            generation.start(session)
            if asked.stream:
                await _stream(send, generation, api.writer(heading, asked, generation.plans), hit.cut_after)
                return
            whole = await generation.whole(heading, api.whole)
            if hit.cut_after is not None:
                raise _CutError
            await _send(send, json.dumps(whole).encode())
        except _CutError:
            scope[ABORT]()
        finally:
            generation.close()

    def _read(
        self, api: Api, body: bytes, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[dict[str, Any], Asked, faults.Hit]:
        """(the body, what it asks for, the fault that hits it). Raises BadRequestError."""
        found, behind_model = self._document(body)
        in_header = dict(headers).get(FAULT_HEADER, b"").decode("latin-1")
        try:
            listed = faults.read_faults(in_header or behind_model) or self._conduct.faults
        except faults.InvalidFaultError as error:
            raise BadRequestError(str(error), faults.HEADER) from error
        hit = faults.draw(listed, self._conduct.fault_seed, next(self._numbers))
        return found, api.parse(found, self._engine.limits.max_model_len), hit

    def _document(self, body: bytes) -> tuple[dict[str, Any], str]:
        """(a body for this model, the faults behind the model's name). Raises BadRequestError."""
        found = document(_parsed(body))
        requested, behind = faults.split_model(found.get("model", self._model), self._model)
        if requested != self._model:
            message = f"The model `{requested}` does not exist; this engine serves {self._model}"
            raise BadRequestError(message, "model", 404)
        return found, behind

    def _heading(self, body: dict[str, Any]) -> Heading:
        named = body.get("request_id")
        return Heading(
            unique=uuid.uuid4().hex,
            model=self._model,
            created=int(time.time()),
            response_id=named if isinstance(named, str) else "",
        )


async def _apart(body: bytes, read: Callable[[], Found]) -> Found:
    """Reads a large body in another OS thread, so that engine and streams go on meanwhile."""
    return await asyncio.to_thread(read) if len(body) > LARGE_BODY_BYTES else read()


async def _refused(send: Send, dialect: Dialect, hit: faults.Hit) -> bool:
    """Waits if the fault is one of latency, and answers if it is a status."""
    if hit.latency_s:
        await asyncio.sleep(hit.latency_s)
    if not hit.status:
        return False
    text = error_document(
        dialect, hit.status, f"injected fault: status {hit.status}", param=None, code="injected_fault"
    )
    await _send(send, text, hit.status, [(b"retry-after", b"%g" % hit.retry_after_s)])
    return True


async def _stream(send: Send, generation: Generation, writer: Writer, cut_after: int | None) -> None:
    """Raises _CutError after so many tokens."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    def on_token(number: int) -> None:
        if number == cut_after:
            raise _CutError

    async for event in generation.events(writer, on_token):
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _parsed(body: bytes) -> object:
    """Raises BadRequestError. What msgspec refuses and Python's json takes is what vLLM takes."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}", "") from error


@web.middleware
async def _enveloped(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Puts errors of aiohttp itself (an unknown path) into OpenAI's envelope."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        message = f"{request.path}: {error.reason}"
        document = {"error": {"message": message, "type": "invalid_request_error", "code": error.status}}
        return web.json_response(document, status=error.status)


async def _send(send: Send, body: bytes, status: int = 200, more: Iterable[tuple[bytes, bytes]] = ()) -> None:
    headers = [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
