"""CallService.Generate: the engine's response as a gRPC stream, for client libraries in any language.

Bytes that arrive within a window are sent as one message. When the RPC is cancelled, the HTTP connection is closed and
the engine aborts the call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import grpc
from agentserving.contract.ticket import InvalidTicketError
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc
from agentserving_process.audit import Refusals
from agentserving_process.malformed import TolerantServer
from prometheus_client import Counter

from agentserving_sidecar.engine_http import EngineHttp

REFUSED = Counter("agentserving_sidecar_generate_refusals", "Calls of Generate without a valid ticket.", ["reason"])
GENERATE = "/agentserving.v1.CallService/Generate"
WINDOW_S = 0.015
MAX_BODY_BYTES = 10 << 20
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings")


class GenerateServicer(rpc.CallServiceServicer):
    """Serves Generate only; AdmitCall belongs to the control plane."""

    def __init__(self, engine: EngineHttp, check: Callable[[str], None]) -> None:
        """`check` raises InvalidTicketError for a ticket that is not one of this engine's."""
        self._engine, self._check, self._refusals = engine, check, Refusals(time.monotonic())

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        """INVALID_ARGUMENT for another path or a body that is too large; UNAVAILABLE when the engine is.

        UNAUTHENTICATED without a valid ticket: it is the credential of a call that the control plane has admitted.
        """
        try:
            self._check(request.ticket)
        except InvalidTicketError as error:
            REFUSED.labels(error.reason).inc()
            self._refusals.refused(
                time.monotonic(), outcome="UNAUTHENTICATED", reason=error.reason, role="client",
                peer=str(context.peer()).rpartition(":")[0], method="CallService.Generate",
            )  # fmt: skip
            message = f"ticket: {error.reason}; AdmitCall gives a call its ticket, for the engine that it names"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, message)
        if request.path not in PATHS:
            message = f"path: {request.path[:100]!r} is none of {', '.join(PATHS)}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        if len(request.body) > MAX_BODY_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"body: at most {MAX_BODY_BYTES} bytes")
        ids = {"x-session-id": request.ticket, "x-request-id": request.call_id}
        headers = {name: value for name, value in ids.items() if value}
        try:
            async with self._engine.post(request.path, request.body, headers) as response:
                yield pb.GenerateResponse(http_status=response.status, content_type=response.content_type)
                async for chunk in _coalesced(response.content):
                    yield pb.GenerateResponse(chunk=chunk)
        except (aiohttp.ClientError, OSError) as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the engine did not answer: {error}")


async def _coalesced(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The first bytes immediately, then what arrives within each window."""
    while data := await content.readany():
        yield data
        if not content.at_eof():
            await asyncio.sleep(WINDOW_S)


def add_generate(server: grpc.aio.Server, engine: EngineHttp, check: Callable[[str], None]) -> None:
    """Registers the service; `check` as of GenerateServicer."""
    only = TolerantServer(server, frozenset({GENERATE}))
    rpc.add_CallServiceServicer_to_server(GenerateServicer(engine, check), only)
