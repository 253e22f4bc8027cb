"""Bytes that are no message of the method are an error of ours, in both clients and in every kind of call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import agentserving
import grpc
import pytest
from agentserving.transport.errors import InternalError

GARBAGE = b"\xff\xff\xff"


class Garbage(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """Answers every call with bytes that no message has."""

    def service(self, handler_call_details: Any) -> Any:
        is_stream = "Watch" in handler_call_details.method
        return grpc.unary_stream_rpc_method_handler(_many) if is_stream else grpc.unary_unary_rpc_method_handler(_one)


async def _one(request: bytes, context: Any) -> bytes:
    return GARBAGE


async def _many(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield GARBAGE


@asynccontextmanager
async def garbage() -> AsyncIterator[str]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Garbage(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


SETTINGS = agentserving.Settings(tls=None, deadline_s=10, attempts=1)


@pytest.mark.parametrize("operation", ["list_engines", "get_overview"])
async def test_a_response_that_cannot_be_decoded_is_an_internal_error(operation: str) -> None:
    async with garbage() as address:
        async with agentserving.AsyncClient(address, settings=SETTINGS) as client:
            with pytest.raises(InternalError):
                await getattr(client, operation)()

        def blocking() -> None:
            with agentserving.Client(address, settings=SETTINGS) as client:
                getattr(client, operation)()

        with pytest.raises(InternalError):
            await asyncio.to_thread(blocking)


async def test_a_message_of_a_stream_that_cannot_be_decoded_is_an_error_of_ours() -> None:
    async with garbage() as address, agentserving.AsyncClient(address, settings=SETTINGS) as client:
        with pytest.raises(agentserving.AgentServingError):
            async with asyncio.timeout(10):
                await anext(client.watch_endings())
