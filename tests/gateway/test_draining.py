"""A gateway that was told to end breaks no call, and no connection that it promised to keep."""

from __future__ import annotations

import asyncio

import pytest
from agentserving_gateway import draining
from gateway.gateway_rig import answer_json, rig, until

REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "SETTLE_S", 0.2)
    monkeypatch.setattr(draining, "QUIET_S", 0.3)


async def whole_answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)


async def test_a_call_under_way_ends_and_its_client_may_speak_once_more() -> None:
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
        await asyncio.wait_for(stopped.wait(), 20)
        assert not drained.done()
        go_on.set()
        # It said so before its connection ends: nobody speaks into a closed one.
        assert b"connection: close" in (await whole_answer(reader)).lower()
        await asyncio.wait_for(drained, 20)
        writer.close()


async def test_a_kept_connection_is_answered_and_told_to_end() -> None:
    async with rig(answer_json) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(REQUEST)
        assert b"connection: close" not in (await whole_answer(reader)).lower()
        stopped = asyncio.Event()
        drained = asyncio.create_task(made.connections.drain(60, stopped.set))
        await asyncio.wait_for(stopped.wait(), 20)
        writer.write(REQUEST)
        assert b"connection: close" in (await whole_answer(reader)).lower()
        assert await asyncio.wait_for(reader.read(), 20) == b""
        await asyncio.wait_for(drained, 20)
        writer.close()


async def test_what_is_idle_is_closed_and_what_takes_too_long_is_cut_off() -> None:
    async def never(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with rig(never) as made:
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", made.port)
        busy, busy_writer = await asyncio.open_connection("127.0.0.1", made.port)
        busy_writer.write(REQUEST)
        await until(lambda: bool(made.engines[0].requests))
        await asyncio.wait_for(made.connections.drain(0.5, lambda: None), 20)
        assert await asyncio.wait_for(idle.read(), 20) == b""
        assert await asyncio.wait_for(busy.read(), 20) == b""
        for writer in (idle_writer, busy_writer):
            writer.close()


async def test_without_a_limit_it_ends_at_once() -> None:
    async with rig(answer_json) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        await made.connections.drain(0, lambda: None)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
