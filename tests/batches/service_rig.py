"""The batch service in this process, on a directory that outlives it, behind the real OpenAI SDK; its gateway is an
HTTP server that a test scripts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from agentserving.contract.grant import HEADER, Grant, sign
from agentserving.contract.signatures import signing_key
from agentserving_batches.http import server
from agentserving_batches.http.asker import Askers
from agentserving_batches.http.batches import Batches
from agentserving_batches.http.files import Files
from agentserving_batches.limits import Limits
from agentserving_batches.store.contents import Contents
from agentserving_batches.store.database import Database
from agentserving_batches.work.gateway import Gateway
from agentserving_batches.work.runner import Runner
from agentserving_batches.work.stages import Stages
from agentserving_batches.work.upkeep import Upkeep
from aiohttp import web
from openai.types import Batch
from support.eventually import eventually_async

KEY = signing_key(b"0123456789abcdef")
ENDED = ("completed", "failed", "expired", "cancelled")
# What a script answers a call with; it is given what the message says, and how often that was asked before.
Script = Callable[[str, int], Awaitable[web.Response]]


async def echoes(text: str, before: int) -> web.Response:
    return web.json_response({"said": text}, headers={"x-agentserving-call-id": f"call-{text}"})


@dataclass
class PlayedGateway:
    """Serves the model `m`, and calls as `script` says."""

    script: Script = echoes
    calls: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    broken_off: int = 0
    in_progress: int = 0
    most_in_progress: int = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "m"}]})
        text = json.loads(await request.read())["messages"][0]["content"]
        before = self.calls.count(text)
        self.calls.append(text)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.in_progress += 1
        self.most_in_progress = max(self.most_in_progress, self.in_progress)
        try:
            return await self.script(text, before)
        except asyncio.CancelledError:
            self.broken_off += 1
            raise
        finally:
            self.in_progress -= 1


@asynccontextmanager
async def played_gateway(script: Script = echoes) -> AsyncIterator[tuple[PlayedGateway, str]]:
    """(it, its URL)."""
    gateway = PlayedGateway(script)
    runner = web.ServerRunner(web.Server(gateway.handle, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        assert site._server is not None
        yield gateway, f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    finally:
        await runner.cleanup()


class Service:
    """A running service; `client` acts for a tenant."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._clients: list[openai.AsyncOpenAI] = []

    def client(self, tenant: str = "blue", *, headers: dict[str, str] | None = None) -> openai.AsyncOpenAI:
        if headers is None:
            grant = Grant(tenant=tenant, credential="k", expires_unix_s=int(time.time()) + 600, may_call=True)
            headers = {HEADER: sign(grant, KEY)}
        transport = httpx.AsyncHTTPTransport(uds=str(self._socket))
        made = openai.AsyncOpenAI(
            base_url="http://service/v1", api_key="none", max_retries=0, default_headers=headers,
            http_client=httpx.AsyncClient(transport=transport),
        )  # fmt: skip
        self._clients.append(made)
        return made

    async def close(self) -> None:
        for each in self._clients:
            await each.close()


@asynccontextmanager
async def service(directory: Path, gateway_url: str, limits: Limits | None = None) -> AsyncIterator[Service]:
    """As `__main__` wires it; leaving the block ends it as a crash does: nothing is waited for."""
    limits = limits or Limits(min_free_bytes=0)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(Database(directory))
        # Unix sockets have short paths.
        socket = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="as-"))) / "b.sock"
        contents = Contents(directory)
        async with Gateway(gateway_url) as gateway:
            await Upkeep(database, contents, limits).clear()
            runner = Runner(database, Stages(database, contents, gateway, limits))
            files = Files(database, contents, limits)
            batches = Batches(database, runner, limits, files.check_room)
            app = server.application(Askers(lambda: [KEY.public_key()]), [*files.routes(), *batches.routes()])
            running = asyncio.create_task(runner.run())
            async with server.served(app, f"unix:{socket}"):
                made = Service(socket)
                try:
                    yield made
                finally:
                    await made.close()
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)


def request(custom_id: str, **changes: Any) -> dict[str, Any]:
    """A line of an input file."""
    body = {"model": "m", "messages": [{"role": "user", "content": custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}


def text_of(requests: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in requests).encode()


async def create(client: openai.AsyncOpenAI, requests: Sequence[dict[str, Any]], window: str = "24h") -> Batch:
    file = await client.files.create(file=("in.jsonl", text_of(requests)), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window=window,  # type: ignore[arg-type] # OpenAI knows 24h only
    )


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    """The batch, once it has ended."""

    async def found() -> Batch | None:
        now = await client.batches.retrieve(batch.id)
        return now if now.status in ENDED else None

    result = await eventually_async(found)
    assert result is not None
    return result


async def lines(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if not file_id:
        return []
    return [json.loads(line) for line in (await client.files.content(file_id)).text.splitlines()]
