"""A gateway that stops breaks no call, and no connection that it promised to keep alive."""

from __future__ import annotations

import asyncio

import pytest
from agentserving_gateway import draining
from gateway.gateway_rig import answer_json, rig, until
from support.eventually import DEADLINE_S

REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "SETTLE_S", 0.2)
    monkeypatch.setattr(draining, "QUIET_S", 0.3)


async def whole_answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)


async def test_a_running_call_completes_and_its_answer_closes_the_connection() -> None:
    go_on = asyncio.Event()

    async def slow(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await answer_json(request, reader, writer)

    async with rig(slow) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(REQUEST)
        await until(lambda: bool(made.engines[0].requests))
        stopped = asyncio.Event()
        drained = asyncio.create_task(made.connections.drain(60, stopped.set))
        await asyncio.wait_for(stopped.wait(), DEADLINE_S)
        assert not drained.done()
        go_on.set()
        # The answer announces the end of the connection, so the client sends nothing into a closed one.
        assert b"connection: close" in (await whole_answer(reader)).lower()
        await asyncio.wait_for(drained, DEADLINE_S)
        writer.close()


async def test_a_request_on_an_idle_connection_is_answered_with_connection_close() -> None:
    async with rig(answer_json) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(REQUEST)
        assert b"connection: close" not in (await whole_answer(reader)).lower()
        stopped = asyncio.Event()
        drained = asyncio.create_task(made.connections.drain(60, stopped.set))
        await asyncio.wait_for(stopped.wait(), DEADLINE_S)
        writer.write(REQUEST)
        assert b"connection: close" in (await whole_answer(reader)).lower()
        assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
        await asyncio.wait_for(drained, DEADLINE_S)
        writer.close()


async def test_idle_connections_are_closed_and_calls_over_the_limit_are_cut_off() -> None:
    async def never(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with rig(never) as made:
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", made.port)
        busy, busy_writer = await asyncio.open_connection("127.0.0.1", made.port)
        busy_writer.write(REQUEST)
        await until(lambda: bool(made.engines[0].requests))
        await asyncio.wait_for(made.connections.drain(0.5, lambda: None), DEADLINE_S)
        assert await asyncio.wait_for(idle.read(), DEADLINE_S) == b""
        assert await asyncio.wait_for(busy.read(), DEADLINE_S) == b""
        for writer in (idle_writer, busy_writer):
            writer.close()


async def test_a_limit_of_zero_closes_everything_immediately() -> None:
    async with rig(answer_json) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        await made.connections.drain(0, lambda: None)
        assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
        writer.close()
