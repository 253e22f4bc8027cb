"""The OpenAI paths of the simulated engine: completions and chat completions, streamed or not.

Calls are answered as an ASGI application, so that they go through the middleware that vLLM's do: keep-alive comments,
error events, refused bodies.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from agentserving_engine.clock import now_us
from agentserving_engine.http.entrance import Entrance
from agentserving_engine.http.middleware import TICKET_HEADER, Receive, Send
from agentserving_engine.settings import SSE_KEEP_ALIVE_S
from aiohttp import web

from agentserving_simulator.aiohttp_exchange import respond
from agentserving_simulator.completion_request import BadRequestError, CompletionRequest, parse
from agentserving_simulator.engine import SimulatedEngine
from agentserving_simulator.requests import Finished, Outputs, SimRequest


class Front:
    """HTTP handlers of one engine. `keep_alive_s` is the longest silence of a stream; 0 = no limit."""

    def __init__(
        self, engine: SimulatedEngine, model: str, entrance: Entrance, keep_alive_s: float = SSE_KEEP_ALIVE_S
    ) -> None:
        self._engine, self._model, self._entrance, self._keep_alive_s = engine, model, entrance, keep_alive_s

    def app(self) -> web.Application:
        """The aiohttp application."""
        # No limit, as in vLLM: the front has one.
        app = web.Application(client_max_size=0, middlewares=[_enveloped])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
            ]
        )
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        limit = self._engine.limits.max_model_len
        entry = {"id": self._model, "object": "model", "owned_by": "agentserving", "max_model_len": limit}
        return web.json_response({"object": "list", "data": [entry]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "completions")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "chat")

    async def _answer(self, request: web.Request, kind: str) -> web.StreamResponse:
        async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
            session = dict(scope["headers"]).get(TICKET_HEADER, b"").decode("latin-1")
            await self._call(kind, session, receive, send)

        return await respond(request, application, self._keep_alive_s, self._entrance)

    async def _call(self, kind: str, session: str | None, receive: Receive, send: Send) -> None:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        try:
            body = parse(_document(message["body"]), kind, self._model, self._engine.limits.max_model_len)
        except BadRequestError as error:
            detail = {"message": str(error), "type": "invalid_request_error", "param": error.param}
            await _send_json(send, {"error": {**detail, "code": error.status}}, error.status)
            return
        base = uuid.uuid4()
        head = _head(kind, f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{base.hex}", self._model)
        requests = self._requests(body, head["id"], base.int)
        try:
            for each in requests:
                self._engine.add(each, session, now_us(), time.time())
            if body.stream:
                await _stream(send, body, kind, head, requests)
            else:
                await _send_json(send, await _whole(body, kind, head, requests))
        finally:
            for each in requests:
                self._engine.cancel(each.request_id, now_us())

    def _requests(self, body: CompletionRequest, name: str, seed: int) -> list[SimRequest]:
        outputs: Outputs = asyncio.Queue()
        limit = self._engine.limits.max_model_len
        return [
            SimRequest(
                f"{choice}_{name}", list(prompt), min(body.max_tokens, limit - len(prompt)), seed=seed >> choice,
                choice=choice, outputs=outputs, salt=body.cache_salt,
            )
            for choice, prompt in enumerate(prompt for prompt in body.prompts for _ in range(body.choices))
        ]  # fmt: skip


async def _whole(
    body: CompletionRequest, kind: str, head: dict[str, Any], requests: list[SimRequest]
) -> dict[str, Any]:
    words: list[list[str]] = [[] for _ in requests]
    reasons = [""] * len(requests)
    async for choice, item in _outputs(requests):
        if isinstance(item, Finished):
            reasons[choice] = item.reason
        else:
            words[choice].append(item)
    choices = [
        _choice(kind, index, "".join(text), reason, delta=False)
        for index, (text, reason) in enumerate(zip(words, reasons, strict=True))
    ]
    return {**head, "choices": choices, "usage": _usage(body, requests)}


async def _stream(
    send: Send, body: CompletionRequest, kind: str, head: dict[str, Any], requests: list[SimRequest]
) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    head = {**head, "object": "chat.completion.chunk" if kind == "chat" else "text_completion"}
    async for choice, item in _outputs(requests):
        reason, text = (item.reason, "") if isinstance(item, Finished) else (None, item)
        await _event(send, {**head, "choices": [_choice(kind, choice, text, reason, delta=True)]})
    if body.include_usage:
        await _event(send, {**head, "choices": [], "usage": _usage(body, requests)})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _outputs(requests: list[SimRequest]) -> AsyncIterator[tuple[int, str | Finished]]:
    """Tokens and ends of all choices, in the order in which they are produced."""
    left = len(requests)
    while left:
        choice, item = await requests[0].outputs.get()
        left -= isinstance(item, Finished)
        yield choice, item


def _document(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError as error:
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


def _head(kind: str, base: str, model: str) -> dict[str, Any]:
    name = "chat.completion" if kind == "chat" else "text_completion"
    return {"id": base, "object": name, "created": int(time.time()), "model": model}


def _choice(kind: str, index: int, text: str, reason: str | None, *, delta: bool) -> dict[str, Any]:
    if kind == "completions":
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
    message = {"role": "assistant", "content": text}
    return {"index": index, "delta" if delta else "message": message, "finish_reason": reason}


def _usage(body: CompletionRequest, requests: list[SimRequest]) -> dict[str, Any]:
    # A prompt counts once, however many choices it has.
    prompts = requests[:: body.choices]
    prompt, output = sum(each.prompt_tokens for each in prompts), sum(each.generated for each in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in prompts)},
    }


async def _send_json(send: Send, document: dict[str, Any], status: int = 200) -> None:
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _event(send: Send, document: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})
