"""CallService.Generate: the engine's answer as a gRPC stream, for client libraries in any language.

Bytes that come within a window go out as one message. When the RPC is cancelled the HTTP connection is closed at once,
and the engine aborts the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc

WINDOW_S = 0.015
MAX_BODY_BYTES = 10 << 20
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings")


class GenerateServicer(rpc.CallServiceServicer):
    """Only Generate; AdmitCall is the control plane's."""

    def __init__(self, engine_address: str, session: aiohttp.ClientSession) -> None:
        self._engine_address, self._session = engine_address, session

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        """See the proto."""
        if request.path not in PATHS:
            told = f"path: {request.path[:100]!r} is none of {', '.join(PATHS)}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, told)
        if len(request.body) > MAX_BODY_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"body: at most {MAX_BODY_BYTES} bytes")
        headers = {"content-type": "application/json"}
        if request.ticket:
            headers["x-session-id"] = request.ticket
        if request.call_id:
            headers["x-request-id"] = request.call_id
        try:
            async with self._session.post(
                f"http://{self._engine_address}{request.path}",
                data=request.body,
                headers=headers,
                allow_redirects=False,
            ) as answer:
                yield pb.GenerateResponse(http_status=answer.status, content_type=answer.content_type)
                async for chunk in _coalesce(answer.content):
                    yield pb.GenerateResponse(chunk=chunk)
        except aiohttp.ClientError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the engine did not answer: {error}")


async def _coalesce(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The first bytes at once, then whatever gathers within the window."""
    while data := await content.readany():
        yield data
        if not content.at_eof():
            await asyncio.sleep(WINDOW_S)
