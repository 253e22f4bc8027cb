"""/v1/models: the lists of all ready engines as one, so that a model or an adapter of one engine is seen.

Engines are asked at each request with the client's own headers, credentials included.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from agentserving_gateway.attempt import Attempt, Verdict
from agentserving_gateway.errors import HttpError
from agentserving_gateway.request import MODELS, Request
from agentserving_gateway.upstream_pool import UpstreamPool

MAX_LIST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole answer."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


class _Collector:
    """Keeps an answer in memory. Implements attempt.Sink."""

    def __init__(self) -> None:
        self._status = 0
        self._content_type = b"application/json"
        self._body = bytearray()
        self._end: asyncio.Future[Fetched | None] = asyncio.get_running_loop().create_future()

    def begin(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        """See Sink."""
        self._status = status
        for name, value in headers:
            if name.lower() == b"content-type":
                self._content_type = value

    def write(self, data: bytes) -> None:
        """See Sink."""
        self._body += data
        if len(self._body) > MAX_LIST_BYTES and not self._end.done():
            self._end.set_result(None)

    def finish(self, *, complete: bool) -> None:
        """See Sink."""
        if not self._end.done():
            whole = Fetched(self._status, bytes(self._body), self._content_type)
            self._end.set_result(whole if complete else None)

    async def wait(self) -> Fetched | None:
        """The answer; None when it is incomplete or too long."""
        return await self._end


async def fetch_models(pool: UpstreamPool, request: Request, address: str, bound_s: float) -> Fetched | None:
    """An engine's list; None when none comes in time."""
    collector = _Collector()
    asked = Request(method=b"GET", target=MODELS.encode(), headers=request.headers)
    attempt = Attempt(pool, asked, address, collector)
    try:
        async with asyncio.timeout(bound_s):
            if await attempt.run(unchunk=True) is not Verdict.ANSWERED:
                return None
            return await collector.wait()
    except TimeoutError:
        return None
    finally:
        attempt.abandon()


def answer_of(path: str, answers: list[Fetched]) -> Fetched:
    """The answer to GET /v1/models or /v1/models/{id}. HttpError."""
    if not answers:
        raise HttpError(
            503, "no engine answered: try again in a moment", "server_error", "no_engine", retry_after_s=1.0
        )
    lists = [found for answer in answers if (found := _models_in(answer)) is not None]
    if not lists:
        return answers[0]  # an engine's own refusal: of a wrong API key, for instance
    models: dict[str, dict[str, Any]] = {str(model["id"]): model for models in reversed(lists) for model in models}
    ordered = dict.fromkeys(str(model["id"]) for models in lists for model in models)
    name = unquote(path.removeprefix(MODELS).removeprefix("/"))
    if not name:
        return Fetched(200, json.dumps({"object": "list", "data": [models[each] for each in ordered]}).encode())
    if name not in models:
        raise HttpError(
            404, f"no engine serves {name[:100]!r}; served: {', '.join(ordered) or 'no model yet'}",
            code="model_not_found", param="model",
        )  # fmt: skip
    return Fetched(200, json.dumps(models[name]).encode())


def _models_in(answer: Fetched) -> list[dict[str, Any]] | None:
    if answer.status != 200:
        return None
    try:
        document = json.loads(answer.body)
    except ValueError:
        return None
    found = document.get("data", []) if isinstance(document, dict) else None
    if not isinstance(found, list):
        return None
    return [model for model in found if isinstance(model, dict) and "id" in model]
