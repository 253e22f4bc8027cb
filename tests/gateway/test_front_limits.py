"""The front refuses what is too much, and serves on: connections, memory. HTTP/2 without TLS is served."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from gateway.gateway_rig import Rig, answer_json, rig
from support.eventually import DEADLINE_S, eventually_async

PROGRAM = "x-agentserving-program-id: p\r\n"


async def test_connections_beyond_the_limit_are_closed_and_the_others_are_served() -> None:
    async with rig(answer_json, max_connections=5) as made:
        await no_connections(made)
        held = [await asyncio.open_connection("127.0.0.1", made.port) for _ in range(5)]
        request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
        for reader, writer in held:
            writer.write(request)
            assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE_S):
                writer.write(request)
                assert await reader.read() == b""
        writer.close()
        held.pop()[1].close()

        async def served() -> bool:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                return (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 200")
            return False

        async with asyncio.timeout(DEADLINE_S):
            while not await served():
                await asyncio.sleep(0.02)
        for _, writer in held:
            writer.close()


async def no_connections(made: Rig) -> None:
    """Those by which the rig has seen that Envoy listens are gone."""

    async def none() -> bool:
        return await made.picker.admin.connections() == 0

    await eventually_async(none)


async def test_idle_connections_give_way_before_there_is_no_room_for_others() -> None:
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    async with rig(answer_json, max_connections=40, crowded_keep_alive_s=0.2) as made:
        held = [await asyncio.open_connection("127.0.0.1", made.port) for _ in range(20)]
        for _, writer in held:
            writer.write(request)
        for reader, _ in held:
            await reader.readuntil(b"ok\n")
        # A call in progress is not idle, however crowded it is.
        busy_reader, busy = await asyncio.open_connection("127.0.0.1", made.port)
        busy.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n" + PROGRAM.encode() + b"\r\n{")
        more = [await asyncio.open_connection("127.0.0.1", made.port) for _ in range(18)]
        for _, writer in more:
            writer.write(request)
        closed = [asyncio.create_task(reader.read(1 << 16)) for reader, _ in held]
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait(closed)
        assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 200")
        busy.write(b"}")
        async with asyncio.timeout(DEADLINE_S):
            assert (await busy_reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        for _, writer in (*held, *more, (busy_reader, busy)):
            writer.close()


async def test_idle_connections_stay_while_there_is_room() -> None:
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    async with rig(answer_json, max_connections=40, crowded_keep_alive_s=0.2) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        for _ in range(2):
            writer.write(request)
            async with asyncio.timeout(DEADLINE_S):
                await reader.readuntil(b"ok\n")
            # Longer than a crowded front leaves it open, and than it takes the picker to look.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 1.5)
        writer.close()


async def upload(port: int, size: int, piece: int, ended: list[bytes]) -> None:
    """All but the last byte of a body, a piece at a time; when the front ends it, `ended` gets its status line."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {size + 1}\r\n\r\n".encode())
        for _ in range(size // piece):
            writer.write(b"x" * piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        ended.append((await reader.read(1 << 16)).partition(b"\r\n")[0])
    except ConnectionError:
        ended.append(b"closed")
    finally:
        writer.close()


@pytest.mark.parametrize("first", [40, 4])
async def test_uploads_that_exceed_the_memory_are_ended_and_others_are_served(first: int) -> None:
    """`first` uploads begin together: 40 exceed the memory with bodies already accepted, 4 leave that to later ones."""
    size = 4 << 20
    async with rig(answer_json, max_heap_bytes=64 << 20, max_body_bytes=8 << 20) as made:
        ended: list[bytes] = []
        uploads = [asyncio.create_task(upload(made.port, size, 64 << 10, ended)) for _ in range(first)]
        async with asyncio.timeout(DEADLINE_S):
            while not ended:
                await asyncio.sleep(0.05)
                if first < 40 and len(uploads) < 400:
                    uploads.append(asyncio.create_task(upload(made.port, size, size, ended)))
        assert not [answer for answer in ended if b" 200 " in answer], ended
        for each in uploads:
            each.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)
        async with asyncio.timeout(DEADLINE_S):
            while not (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 200"):
                await asyncio.sleep(0.05)
        assert made.envoy.returncode is None


async def test_http_2_without_tls_is_served_and_cannot_forge_what_engines_trust() -> None:
    """Frames by hand (RFC 9113): HPACK literals without indexing need no library."""
    headers = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/v1/completions"), (b":authority", b"x"),
        (b"x-agentserving-program-id", b"p"), (b"x-vllm-priority", b"-9"), (b"x-agentserving-call-id", b"forged"),
    ]  # fmt: skip
    block = b"".join(b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in headers)

    def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    async with rig(answer_json) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
        for stream in (1, 3):
            writer.write(frame(1, 4, stream, block) + frame(0, 1, stream, b"{}"))
        bodies: dict[int, bytes] = {}
        async with asyncio.timeout(DEADLINE_S):
            while len(bodies) < 2:
                length, kind = (prefix := await reader.readexactly(9))[:3], prefix[3]
                payload = await reader.readexactly(int.from_bytes(length, "big"))
                assert kind not in (3, 7), f"RST_STREAM or GOAWAY: {payload!r}"
                if kind == 0 and payload:
                    bodies[int.from_bytes(prefix[5:], "big")] = payload
        writer.close()
        assert bodies == {1: b"{}", 3: b"{}"}
        assert len(made.engines[0].requests) == 2
        for request in made.engines[0].requests:
            assert request.startswith(b"POST /v1/completions HTTP/1.1\r\n")
            assert b"forged" not in request
            assert b"x-vllm-priority" not in request
