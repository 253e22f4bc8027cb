"""A front that stops breaks no call, and no connection that it promised to keep alive."""

from __future__ import annotations

import asyncio

from agentserving_gateway.drain import drained
from gateway.gateway_rig import Rig, answer_json, rig, until
from gateway.test_every_call_ends_once import never_answers

REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
SETTLE_S = 0.3


async def whole_answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)


async def until_draining(made: Rig) -> None:
    """Envoy announces the end of each connection."""
    async with asyncio.timeout(20):
        while b"connection: close" not in await made.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"):
            await asyncio.sleep(0.02)


async def test_a_running_call_completes_before_the_drain_ends_and_its_answer_closes_the_connection() -> None:
    go_on = asyncio.Event()

    async def slow(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await answer_json(request, reader, writer)

    async with rig(slow) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(REQUEST)
        await until(lambda: bool(made.engines[0].requests))
        drained = asyncio.create_task(made.picker.admin.drain(SETTLE_S, 60))
        await until_draining(made)
        await asyncio.sleep(SETTLE_S)
        assert not drained.done()
        go_on.set()
        # The client sends nothing into a closed connection.
        assert b"connection: close" in (await whole_answer(reader)).lower()
        await asyncio.wait_for(drained, 20)
        writer.close()


async def test_a_stream_goes_on_whole_through_a_drain() -> None:
    more = asyncio.Queue[bytes]()

    async def streams(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while data := await more.get():
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with rig(streams) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(REQUEST)
        more.put_nowait(b"data: 1\n\n")
        await asyncio.wait_for(reader.readuntil(b"data: 1"), 20)
        drained = asyncio.create_task(made.picker.admin.drain(SETTLE_S, 60))
        await until_draining(made)
        more.put_nowait(b"data: 2\n\n")
        await asyncio.wait_for(reader.readuntil(b"data: 2"), 20)
        assert not drained.done()
        more.put_nowait(b"")
        await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 20)
        await asyncio.wait_for(drained, 20)
        writer.close()


async def test_a_request_on_an_idle_connection_and_one_on_a_new_connection_are_served_while_it_settles() -> None:
    async with rig(answer_json) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(REQUEST)
        assert b"connection: close" not in (await whole_answer(reader)).lower()
        drained = asyncio.create_task(made.picker.admin.drain(60, 60))
        await until_draining(made)
        for stream in ((reader, writer), await asyncio.open_connection("127.0.0.1", made.port)):
            stream[1].write(REQUEST)
            assert b"connection: close" in (await whole_answer(stream[0])).lower()
            stream[1].close()
        drained.cancel()
        await asyncio.gather(drained, return_exceptions=True)


async def test_a_drain_does_not_wait_for_calls_over_its_limit() -> None:
    async with rig(never_answers) as made:
        _, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(REQUEST)
        await until(lambda: bool(made.engines[0].requests))
        await asyncio.wait_for(made.picker.admin.drain(0.0, 0.3), 20)
        assert await made.picker.admin.active()
        writer.close()


async def test_a_drain_of_an_envoy_that_is_gone_ends() -> None:
    async with rig(answer_json) as made:
        made.envoy.kill()
        await made.envoy.wait()
        await asyncio.wait_for(made.picker.admin.drain(0.1, 60), 20)


async def test_the_pickers_hook_waits_for_the_end_of_envoy_which_serves_until_then() -> None:
    """Without it the picker of a pod may end first, and a request on a kept connection gets 503."""
    async with rig(answer_json) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        waiting = asyncio.create_task(drained(made.picker.run_dir, 60, until_gone=True))
        await made.picker.admin.drain(SETTLE_S, 60)
        writer.write(REQUEST)
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
        assert not waiting.done()
        made.envoy.terminate()
        await asyncio.wait_for(waiting, 20)
        await made.envoy.wait()
        assert await made.picker.admin.is_gone()
        writer.close()
