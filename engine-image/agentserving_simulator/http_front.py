"""The OpenAI paths of the simulated engine: completions and chat completions, streamed or not."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from agentserving_simulator.engine import SimulatedEngine, now_us
from agentserving_simulator.requests import Finished, SimRequest

MAX_BODY_BYTES = 16 << 20
MAX_CHOICES = 128
# English prose has about this many characters a token under common tokenizers; there is no tokenizer here.
CHARACTERS_PER_TOKEN = 4
DEFAULT_MAX_TOKENS = {"completions": 16, "chat": 256}


class BadRequestError(Exception):
    """What is wrong with the request: (message, parameter, status)."""

    def __init__(self, message: str, param: str, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


class Front:
    """Handlers over one engine."""

    def __init__(self, engine: SimulatedEngine, model: str) -> None:
        self._engine, self._model = engine, model

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
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
        try:
            body = await _body(request)
            choices = self._requests(body, kind)
        except BadRequestError as error:
            told = {"message": str(error), "type": "invalid_request_error", "param": error.param, "code": error.status}
            return web.json_response({"error": told}, status=error.status)
        session = request.headers.get("X-Session-ID")
        try:
            for choice in choices:
                self._engine.add(choice, session, now_us(), time.time())
            if body.get("stream"):
                return await self._stream(request, body, kind, choices)
            return await self._whole(kind, choices)
        finally:
            for choice in choices:
                self._engine.abort(choice.request_id, now_us())

    def _requests(self, body: dict[str, Any], kind: str) -> list[SimRequest]:
        model = body.get("model", self._model)
        if model != self._model:
            raise BadRequestError(f"The model `{model}` does not exist; this engine serves {self._model}", "model", 404)
        text = body.get("messages") if kind == "chat" else body.get("prompt")
        if not text:
            name = "messages" if kind == "chat" else "prompt"
            raise BadRequestError(f"{name} is missing or empty", name)
        prompt = max(1, len(text if isinstance(text, str) else json.dumps(text)) // CHARACTERS_PER_TOKEN)
        limit = self._engine.limits.max_model_len
        if prompt >= limit:
            raise BadRequestError(f"the prompt has about {prompt} tokens, the model takes {limit}", "prompt")
        wanted = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS[kind]
        tokens = min(_count(wanted, "max_tokens", limit * 1000), limit - prompt)
        base = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        number = _count(body.get("n") or 1, "n", MAX_CHOICES)
        return [SimRequest(f"{index}_{base}", prompt, tokens) for index in range(number)]

    async def _whole(self, kind: str, choices: list[SimRequest]) -> web.Response:
        answered = []
        for index, choice in enumerate(choices):
            words = []
            reason = ""
            async for item in _outputs(choice):
                if isinstance(item, Finished):
                    reason = item.reason
                else:
                    words.append(_word(item))
            answered.append(_choice(kind, index, "".join(words), reason, delta=False))
        base = choices[0].request_id.partition("_")[2]
        return web.json_response({**_head(kind, base, self._model), "choices": answered, "usage": _usage(choices)})

    async def _stream(
        self, request: web.Request, body: dict[str, Any], kind: str, choices: list[SimRequest]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        head = {**_head(kind, choices[0].request_id.partition("_")[2], self._model), "object": _chunk_object(kind)}
        for index, choice in enumerate(choices):
            async for item in _outputs(choice):
                reason = item.reason if isinstance(item, Finished) else None
                text = "" if isinstance(item, Finished) else _word(item)
                await _event(response, {**head, "choices": [_choice(kind, index, text, reason, delta=True)]})
        if (body.get("stream_options") or {}).get("include_usage"):
            await _event(response, {**head, "choices": [], "usage": _usage(choices)})
        await response.write(b"data: [DONE]\n\n")
        return response


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON: {error}", "") from error
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object", "")
    return body


def _count(value: object, name: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise BadRequestError(f"{name} must be a whole number from 1 to {most}, not {value!r}", name)
    return value


async def _outputs(choice: SimRequest) -> AsyncIterator[int | Finished]:
    while True:
        item = await choice.outputs.get()
        yield item
        if isinstance(item, Finished):
            return


def _word(index: int) -> str:
    return f" w{index % 10}"


def _head(kind: str, base: str, model: str) -> dict[str, Any]:
    name = "chat.completion" if kind == "chat" else "text_completion"
    return {"id": base, "object": name, "created": int(time.time()), "model": model}


def _chunk_object(kind: str) -> str:
    return "chat.completion.chunk" if kind == "chat" else "text_completion"


def _choice(kind: str, index: int, text: str, reason: str | None, *, delta: bool) -> dict[str, Any]:
    if kind == "completions":
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
    message = {"role": "assistant", "content": text}
    return {"index": index, "delta" if delta else "message": message, "finish_reason": reason}


def _usage(choices: list[SimRequest]) -> dict[str, int]:
    prompt, output = choices[0].prompt_tokens, sum(choice.generated for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


async def _event(response: web.StreamResponse, document: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n")
