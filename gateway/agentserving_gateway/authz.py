"""The picker behind Envoy's ext_authz filters: HTTP/1.1 on a Unix socket, one request per client's request.

A status of 200 lets the client's request pass, with our headers; any other one is the answer to the client. Envoy takes
a 5xx for a failure of the picker and lets the request pass, so refusals of 5xx travel as 480 to 499 (`replies`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import httptools
import structlog

from agentserving_gateway.envoy import names
from agentserving_gateway.envoy.filters import BODY_PREFIX, HEAD_PREFIX
from agentserving_gateway.envoy.replies import as_refusal
from agentserving_gateway.errors import HttpError, envelope
from agentserving_gateway.picker import Head, NeedsBodyError, Pick, Picker
from agentserving_gateway.routes import route_of, split_program

log = structlog.get_logger()

HEALTH = b"/healthz"
_LOOK = f"HTTP/1.1 200 OK\r\n{names.LOOK}: 1\r\ncontent-length: 0\r\n\r\n".encode()
_ALIVE = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_FAILED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"


# A call whose answer was read this long ago has reached its engine, or Envoy has logged its end.
READ_S = 5.0


class Conversation(asyncio.Protocol):
    """One connection of Envoy; one request at a time.

    Envoy closes it when the client of the question has left, and also for reasons of its own (a health check of this
    process has failed). If the answer was not read, the kernel reports an error, and the call is dropped. If it was,
    the call may be on its engine, or its client left at that very moment: it ends if no engine has seen it.
    """

    def __init__(self, picker: Picker) -> None:
        self._picker = picker
        self._loop = asyncio.get_running_loop()
        # The newest answer, if it let a call pass, and the loop time of it.
        self._passed: Pick | None = None
        self._passed_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            log.warning("Envoy sent what is not HTTP", error=str(error))
            self._write(_FAILED)
            if self._transport is not None:
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._task is not None:
            self._task.cancel()
        if self._passed is None:
            return
        if error is not None:
            self._picker.drop(self._passed)
        elif self._loop.time() - self._passed_at < READ_S:
            self._picker.drop(self._passed, was_read=True)

    # -- httptools -----------------------------------------------------------------------------------------------

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        # Clients send UTF-8 or Latin-1. The first of equals wins.
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        self._headers.setdefault(name.decode("latin-1").lower(), text)

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._target == HEALTH:
            self._begin()
            self._write(_ALIVE)
            return
        # Envoy asks again on this connection, so it has read the answer before.
        self._passed = None
        method = self._parser.get_method().decode()
        work = self._answer(method, self._target.decode("latin-1"), self._headers, self._pieces)
        self._begin()
        self._task = self._loop.create_task(work)

    # -- the answer ----------------------------------------------------------------------------------------------

    async def _answer(self, method: str, target: str, headers: dict[str, str], pieces: list[bytes]) -> None:
        try:
            answer = await self._decide(method, target, headers, pieces)
            if isinstance(answer, Pick):
                self._passed, self._passed_at = answer, self._loop.time()
                answer = _allowed(answer)
            self._write(answer)
        except Exception:
            # Envoy lets the request pass, without a ticket.
            log.exception("a request failed in the picker", target=target)
            self._write(_FAILED)

    async def _decide(self, method: str, target: str, headers: dict[str, str], pieces: list[bytes]) -> Pick | bytes:
        prefix, whole = _split(target)
        program, path = split_program(whole)
        route = route_of(method, path)
        if route is None:
            raise ValueError(f"Envoy asks about {method} {path}, which is no route")
        session = headers.get(names.CLIENT_SESSION)
        if session:
            headers[names.TICKET] = session
        length = headers.get(names.CLIENT_LENGTH, "")
        head = Head(
            route=route,
            path=path,
            program=program,
            headers=headers,
            length=int(length) if length.isdigit() else 0,
            peer=headers.get(names.CLIENT_ADDRESS, ""),
        )
        try:
            return await self._picker.pick(head, b"".join(pieces) if prefix == BODY_PREFIX else None)
        except NeedsBodyError:
            return _LOOK
        except HttpError as error:
            return _refused(error, path)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _split(target: str) -> tuple[str, str]:
    """(prefix, the client's path without its query)."""
    path = target.partition("?")[0]
    prefix = BODY_PREFIX if path.startswith(BODY_PREFIX) else HEAD_PREFIX
    return prefix, path.removeprefix(prefix)


def _allowed(pick: Pick) -> bytes:
    if pick.grant:
        lines = [f"{names.GRANT}: {pick.grant}", f"{names.TENANT}: {pick.tenant}", "content-length: 0"]
        if pick.credential:
            lines.append(f"{names.CREDENTIAL}: {pick.credential}")
        return ("\r\n".join(["HTTP/1.1 200 OK", *lines]) + "\r\n\r\n").encode()
    others = pick.addresses[1:]
    # An engine may close an idle connection at the moment a request comes on it. The only engine is then asked again;
    # without its name Envoy would try any.
    addresses = pick.addresses if others else pick.addresses * 2
    retry_on = names.RETRY_SERVER_ERRORS if others else names.RETRY_NOTHING_ELSE
    lines = [
        "HTTP/1.1 200 OK",
        f"{names.ENDPOINTS}: {','.join(addresses)}",
        f"{names.RETRY_ON}: {retry_on}",
        "content-length: 0",
    ]
    if pick.tenant:
        lines.append(f"{names.TENANT}: {pick.tenant}")
    if pick.credential:
        lines.append(f"{names.CREDENTIAL}: {pick.credential}")
    lines += [f"{name}: {value}" for name, value in pick.answer_headers.items()]
    if pick.program_id:
        lines.append(f"{names.PROGRAM_ID}: {pick.program_id}")
    if pick.call_id:
        lines += [f"{names.CALL_ID}: {pick.call_id}", f"{names.REQUEST_ID}: {pick.call_id}"]
    if pick.ticket:
        lines.append(f"{names.TICKET}: {pick.ticket}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _refused(error: HttpError, path: str) -> bytes:
    body = json.dumps(envelope(error, path)).encode()
    lines = [
        f"HTTP/1.1 {as_refusal(error.status)} Refused",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in error.headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@asynccontextmanager
async def served(picker: Picker, path: Path) -> AsyncIterator[None]:
    """Answers on a Unix socket while the block runs."""
    path.unlink(missing_ok=True)
    server = await asyncio.get_running_loop().create_unix_server(lambda: Conversation(picker), str(path), backlog=4096)
    try:
        yield
    finally:
        server.close()
