"""Bytes that are no message get a clear answer from every server, and no line in its log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from agentserving.contract.ticket import InvalidTicketError
from agentserving_process.malformed import TolerantServer
from agentserving_sidecar.api.generate import add_generate
from agentserving_sidecar.engine_http import EngineHttp
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

HEALTH, CALLS = "/grpc.health.v1.Health", "/agentserving.v1.CallService"
BAD = b"\x0a\xff"


def refuse(ticket: str) -> None:
    raise InvalidTicketError("malformed")


@asynccontextmanager
async def sidecars_server() -> AsyncIterator[grpc.aio.Channel]:
    """A client of a sidecar's services; its engine is never asked."""
    server = grpc.aio.server()
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, TolerantServer(server))
    add_generate(server, EngineHttp("127.0.0.1:1"), refuse)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


async def status(channel: grpc.aio.Channel, path: str, data: bytes, *, stream: bool) -> grpc.StatusCode:
    call = channel.unary_stream(path)(data, timeout=20) if stream else channel.unary_unary(path)(data, timeout=20)
    code: grpc.StatusCode = await call.code()
    return code


@pytest.mark.parametrize(
    ("path", "data", "stream", "expected"),
    [
        (f"{CALLS}/Generate", BAD, True, grpc.StatusCode.INVALID_ARGUMENT),
        (f"{CALLS}/Generate", b"", True, grpc.StatusCode.UNAUTHENTICATED),
        (f"{CALLS}/AdmitCall", BAD, False, grpc.StatusCode.UNIMPLEMENTED),
        (f"{CALLS}/Admissions", b"", True, grpc.StatusCode.UNIMPLEMENTED),
        (f"{HEALTH}/Check", BAD, False, grpc.StatusCode.INVALID_ARGUMENT),
        (f"{HEALTH}/Watch", BAD, True, grpc.StatusCode.INVALID_ARGUMENT),
        (f"{HEALTH}/Check", b"", False, grpc.StatusCode.OK),
    ],
)
async def test_hostile_bytes_are_answered_and_not_logged(
    path: str, data: bytes, stream: bool, expected: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    async with sidecars_server() as channel:
        with caplog.at_level(logging.WARNING):
            assert await status(channel, path, data, stream=stream) is expected
    assert [record.getMessage() for record in caplog.records] == []
