"""gRPC requests that are no message of their method: answered with INVALID_ARGUMENT, and nothing is logged.

gRPC itself would answer UNKNOWN and log a traceback for each, before it is known who asks: anyone who reaches the port
could fill the log.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

_MALFORMED = object()


async def refuse(context: Any) -> None:
    """Aborts with INVALID_ARGUMENT."""
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this method")


def tolerant(handler: Any, refuse: Callable[[Any], Awaitable[None]] = refuse) -> Any:
    """A handler that calls `refuse`, which must abort, for such requests. Streams read their messages themselves."""
    read = handler.request_deserializer
    if read is None:
        return handler

    def decode(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _MALFORMED

    async def unary(request: Any, context: Any) -> Any:
        if request is _MALFORMED:
            await refuse(context)
        return await handler.unary_unary(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        if request is _MALFORMED:
            await refuse(context)
        async with contextlib.aclosing(handler.unary_stream(request, context)) as responses:
            async for response in responses:
                yield response

    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(unary, decode, handler.response_serializer)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(stream, decode, handler.response_serializer)
    return handler


class TolerantServer:
    """Takes the handlers that generated code registers, and registers tolerant ones with a server instead.

    `only`: paths of methods; the server knows no others. Generated code would serve each method of a service, and gRPC
    log a traceback for those that are not implemented.
    """

    def __init__(self, server: grpc.aio.Server, only: frozenset[str] | None = None) -> None:
        self._server, self._only = server, only

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Called by generated code."""
        self._server.add_generic_rpc_handlers(tuple(_Tolerant(each, self._only) for each in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Called by generated code with the same handlers."""


class _Tolerant(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    def __init__(self, inner: grpc.GenericRpcHandler, only: frozenset[str] | None) -> None:
        self._inner, self._only = inner, only

    def service(self, handler_call_details: Any) -> Any:
        """Called by gRPC for each RPC."""
        if self._only is not None and handler_call_details.method not in self._only:
            return None
        found = self._inner.service(handler_call_details)
        return None if found is None else tolerant(found)
