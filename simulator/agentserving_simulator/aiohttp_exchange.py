"""Runs an ASGI application behind aiohttp, with the engine's middleware around it.

aiohttp cancels the handler of a client that has left, so `receive` gives the body and nothing else. The scope has one
entry more than ASGI's: `ABORT`, a function that closes the connection in the middle of whatever is being sent.
"""

from __future__ import annotations

import asyncio

from agentserving_engine.http.dialects import dialect_of
from agentserving_engine.http.entrance import Entrance
from agentserving_engine.http.middleware import Application, Message, serve
from aiohttp import web

ABORT = "agentserving.abort"


async def respond(
    request: web.Request, application: Application, keep_alive_s: float, entrance: Entrance, response_id: str = ""
) -> web.StreamResponse:
    """The application's answer to a request of a generating route; `response_id`: the id of a response."""
    dialect = dialect_of(request.path)
    assert dialect is not None, request.path
    exchange = _Exchange(request)
    headers = [(name.lower(), value) for name, value in request.raw_headers]
    scope: Message = {"type": "http", "path": request.path, "method": request.method, "headers": headers}
    scope[ABORT] = exchange.abort
    await serve(
        application, scope, exchange.receive, exchange.send,
        dialect=dialect, keep_alive_s=keep_alive_s, entrance=entrance, response=response_id,
    )  # fmt: skip
    assert exchange.response is not None, "the application has sent no head"
    return exchange.response


class _Exchange:
    """`response` exists once its head was sent."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._received = self._aborted = False
        self.response: web.StreamResponse | None = None

    async def receive(self) -> Message:
        if self._received:
            await asyncio.get_running_loop().create_future()
        self._received = True
        return {"type": "http.request", "body": await self._request.read(), "more_body": False}

    async def send(self, message: Message) -> None:
        if self._aborted:
            return
        if message["type"] == "http.response.start":
            headers = {name.decode(): value.decode() for name, value in message["headers"]}
            self.response = web.StreamResponse(status=message["status"], headers=headers)
            await self.response.prepare(self._request)
            return
        assert self.response is not None, "a body before the head"
        if message["body"]:
            await self.response.write(message["body"])
        if not message["more_body"]:
            await self.response.write_eof()

    def abort(self) -> None:
        """Closes the connection; what is sent after that is dropped."""
        self._aborted = True
        if self._request.transport is not None:
            self._request.transport.abort()
        # The handler must return an answer, which goes nowhere.
        self.response = self.response or web.StreamResponse()
