"""GET /v1/models and /v1/models/{id}: the lists of all ready engines as one. Envoy sends these to `reads.sock`.

A model or an adapter of a single engine is thereby seen. Engines are asked at each request with the client's own
headers, a credential for engines included; a key of a client is verified here and goes no further.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
from agentserving.contract.engine_http import MODELS
from agentserving_process.engine_tls import EngineTls
from aiohttp import web

from agentserving_gateway.admission import Admission
from agentserving_gateway.credentials import Authenticator
from agentserving_gateway.engines import Engine
from agentserving_gateway.envoy.names import CLIENT_ADDRESS, TICKET
from agentserving_gateway.errors import HttpError, envelope
from agentserving_gateway.picker import no_engine
from agentserving_gateway.refused_clients import RefusedClients

ASK_S = 3.0
MAX_LIST_BYTES = 4 << 20
MAX_HEAD_BYTES = 64 << 10
# Between two neighbours only, or Envoy's.
_HOP = frozenset(
    ("host", "connection", "content-length", "transfer-encoding", "accept-encoding", "upgrade", "te", TICKET)
)


@dataclass(frozen=True, slots=True)
class Fetched:
    """An engine's answer."""

    status: int
    body: bytes
    content_type: str = "application/json"


def answer_of(path: str, answers: list[Fetched]) -> Fetched:
    """The answer to a request for the list, or for one model of it. HttpError."""
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


class ModelLists:
    """Asks the engines."""

    def __init__(
        self, admission: Admission, authenticator: Authenticator, session: aiohttp.ClientSession, tls: EngineTls,
        refused: RefusedClients,
    ) -> None:  # fmt: skip
        self._refused = refused
        self._admission, self._authenticator, self._session, self._tls = admission, authenticator, session, tls

    async def get(self, request: web.Request) -> web.Response:
        """Handles GET; errors in the dialect of the path."""
        try:
            found = await self._answer(request)
        except HttpError as error:
            self._refused.record(error, request.headers.get(CLIENT_ADDRESS, ""), request.path)
            body = json.dumps(envelope(error, request.path)).encode()
            return web.Response(status=error.status, body=body, headers=error.headers)
        return web.Response(status=found.status, body=found.body, headers={"content-type": found.content_type})

    async def _answer(self, request: web.Request) -> Fetched:
        given = {name.lower(): value for name, value in request.headers.items()}
        client = self._authenticator.client_of(given)
        engines = await self._admission.ready_engines_soon()
        if not engines:
            raise no_engine()
        left_out = _HOP.union(self._authenticator.removed_headers)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in left_out}
        tickets = [self._admission.ticket_to_read(client.tenant, [engine]) for engine in engines]
        answers = await asyncio.gather(
            *(
                self._fetch(engine, {**headers, TICKET: ticket} if ticket else headers)
                for engine, ticket in zip(engines, tickets, strict=True)
            )
        )
        for engine, answer in zip(engines, answers, strict=True):
            if answer is None:
                self._admission.avoid(engine.engine_id)
        return answer_of(request.raw_path.partition("?")[0], [answer for answer in answers if answer is not None])

    async def _fetch(self, engine: Engine, headers: Mapping[str, str]) -> Fetched | None:
        """None when an engine does not answer in time, or with more than MAX_LIST_BYTES."""
        try:
            url = self._tls.url(engine.address, MODELS)
            async with self._session.get(url, headers=headers, **self._tls.options(engine.engine_id)) as response:
                body = await response.content.read(MAX_LIST_BYTES + 1)
                while len(body) <= MAX_LIST_BYTES and (more := await response.content.read(MAX_LIST_BYTES)):
                    body += more
                content_type = response.headers.get("content-type", "application/json")
                return Fetched(response.status, body, content_type) if len(body) <= MAX_LIST_BYTES else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


@asynccontextmanager
async def served(
    admission: Admission,
    authenticator: Authenticator,
    path: Path,
    tls: EngineTls | None = None,
    refused: RefusedClients | None = None,
) -> AsyncIterator[None]:
    """Answers on a Unix socket while the block runs."""
    path.unlink(missing_ok=True)
    timeout = aiohttp.ClientTimeout(total=ASK_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        lists = ModelLists(admission, authenticator, session, tls or EngineTls(), refused or RefusedClients())
        app = web.Application()
        app.add_routes([web.get(MODELS, lists.get), web.get(MODELS + "/{model:.+}", lists.get)])
        # Envoy has bounded the head before.
        runner = web.AppRunner(app, access_log=None, max_line_size=MAX_HEAD_BYTES, max_field_size=MAX_HEAD_BYTES)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(path)).start()
            yield
        finally:
            await runner.cleanup()
