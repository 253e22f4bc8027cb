"""What clients get from the gateway, and what engines get."""

from __future__ import annotations

import asyncio
import json

import pytest
from agentserving.contract.ticket import verify
from gateway.gateway_rig import KEY, Script, answer_json, rig, until
from support.eventually import DEADLINE_S


def header(request: bytes, name: bytes) -> bytes:
    for line in request.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b": ")
        if key.lower() == name:
            return value
    return b""


async def test_a_call_carries_a_ticket_and_the_answer_says_who_served_it() -> None:
    async with rig(answer_json) as made:
        answer = await made.post(headers="x-agentserving-program-id: p1\r\nX-Session-ID: forged\r\npriority: 1\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert header(answer, b"x-agentserving-program-id") == b"p1"
        assert header(answer, b"x-agentserving-engine") == b"e0"
        (request,) = made.engines[0].requests
        ticket = verify(header(request, b"x-session-id").decode(), KEY, engine_id="e0", now_unix_s=0)
        assert ticket.program_id == "p1"
        assert (
            header(request, b"x-request-id").decode()
            == ticket.call_id
            == header(answer, b"x-agentserving-call-id").decode()
        )
        assert request.lower().count(b"x-session-id") == 1


async def test_unknown_fields_and_bodies_pass_unchanged() -> None:
    body = b'{"model":"m","unknown":{"x":[1,2]},"temperature":0.10}'
    async with rig(answer_json) as made:
        await made.post(body=body)
        assert made.engines[0].requests[0].endswith(b"\r\n\r\n" + body)


async def test_a_chunked_request_is_understood() -> None:
    data = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    )
    async with rig(answer_json) as made:
        assert (await made.send(data)).startswith(b"HTTP/1.1 200")
        assert made.engines[0].requests[0].endswith(b"\r\n\r\n{}")


def kept_alive(answer: Script, requests: list[bytes] | None = None) -> Script:
    """Answers every request of a connection, as vLLM's server does; `requests` takes those after the first."""

    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await answer(request, reader, writer)
            request = await reader.readuntil(b"\r\n\r\n")
            request += await reader.readexactly(int(header(request, b"content-length") or 0))
            if requests is not None:
                requests.append(request)

    return script


POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n", 400),
        (POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400),
        (POST + b"content-length: -2\r\n\r\n{}", 400),
        (POST + b"content-length: 2x\r\n\r\n{}", 400),
        (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
        (POST + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}", 400),
        (b"\x00\x01\x02\r\n\r\n", 400),
        (POST + b"content-length: 2000000\r\n\r\n", 413),
        (POST + b"transfer-encoding: chunked\r\n\r\n" + b"186a00\r\n" + b"x" * 0x186A00 + b"\r\n", 413),
        (POST + b"x: " + b"y" * 70_000, 431),
        (b"POST /v1/nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", 404),
        (b"GET /v1/completions HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (POST + b'content-length: 18\r\n\r\n{"session_id":"x"}', 400),
        (POST + b'content-length: 23\r\n\r\n{"sessio\\u006e_id": "x"}'.replace(b"23", b"24"), 400),
    ],
)
async def test_a_bad_request_is_answered_and_reaches_no_engine(data: bytes, status: int) -> None:
    async with rig(answer_json) as made:
        answer = await made.send(data)
        assert int(answer.split(b" ")[1]) == status
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["message"]
        assert made.engines[0].requests == []
        assert not made.plane.table.open_calls


async def test_a_pipelined_request_is_left_for_a_new_connection() -> None:
    one = POST + b"content-length: 2\r\n\r\n{}"
    async with rig(answer_json) as made:
        answer = await made.send(one + one)
        assert answer.startswith(b"HTTP/1.1 200")
        assert header(answer, b"connection") == b"close"
        assert len(made.engines[0].requests) == 1


async def test_a_connection_serves_one_call_after_another() -> None:
    async with rig(answer_json) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        for _ in range(3):
            writer.write(POST + b"content-length: 2\r\n\r\n{}")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(2) == b"{}"
        writer.close()


@pytest.mark.parametrize("size", [2, 300_000])
async def test_a_request_that_comes_before_the_engine_has_hung_up_is_served_next(size: int) -> None:
    hang_up = asyncio.Event()

    async def lingers(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"2\r\n{}\r\n0\r\n\r\n")
        await hang_up.wait()

    async with rig(lingers) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        body = b"{" + b" " * (size - 2) + b"}"
        whole = POST + b"content-length: %d\r\n\r\n" % size + body
        try:
            async with asyncio.timeout(DEADLINE_S):
                for _ in range(2):
                    writer.write(whole)
                    asyncio.get_running_loop().call_later(0.05, hang_up.set)
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200")
                    assert await reader.readuntil(b"0\r\n\r\n")
        finally:
            writer.close()
        assert [len(request) for request in made.engines[0].requests] == [len(made.engines[0].requests[0])] * 2


async def test_a_whole_answer_ends_the_call_though_the_engine_does_not_hang_up() -> None:
    async with rig(kept_alive(answer_json)) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        try:
            async with asyncio.timeout(DEADLINE_S):
                for _ in range(2):
                    writer.write(POST + b"content-length: 2\r\n\r\n{}")
                    assert (await reader.readuntil(b"\r\n\r\n{}")).startswith(b"HTTP/1.1 200")
        finally:
            writer.close()


async def test_calls_share_a_connection_to_the_engine_and_a_client_that_goes_does_not_break_it() -> None:
    later: list[bytes] = []
    async with rig(kept_alive(answer_json, later)) as made:
        for _ in range(4):
            answer = await made.post(headers="connection: close\r\n")
            assert answer.endswith(b"\r\n\r\n{}")
        assert len(made.engines[0].requests) == 1
        assert len(later) == 3


async def test_an_idle_connection_that_the_engine_closed_is_replaced_by_a_new_one() -> None:
    async def once_then_vanish(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_json(request, reader, writer)
        await reader.readexactly(1)  # the next request has begun: hang up on it
        writer.transport.abort()

    async with rig(once_then_vanish) as made:
        for _ in range(3):
            assert (await made.post()).endswith(b"\r\n\r\n{}")
        # The second call met the closing connection and went to the same engine again.
        assert len(made.engines[0].requests) == 3
        assert made.plane.table.open_calls == 3


@pytest.mark.parametrize(
    ("head", "sent", "wanted"),
    [
        (b"content-length: 2", b"{}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"{}"),
        (b"transfer-encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n"),
        # A chunk may end as the last chunk does.
        (
            b"transfer-encoding: chunked",
            b"3\r\n0\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"3\r\n0\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        ),
    ],
)
async def test_an_answer_ends_where_its_framing_says(head: bytes, sent: bytes, wanted: bytes) -> None:
    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + sent[:8])
        await writer.drain()
        writer.write(sent[8:])

    async with rig(kept_alive(script)) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        try:
            async with asyncio.timeout(DEADLINE_S):
                for _ in range(2):
                    writer.write(POST + b"content-length: 2\r\n\r\n{}")
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                    assert await reader.readexactly(len(wanted)) == wanted
        finally:
            writer.close()


async def test_a_streamed_chunk_is_passed_on_before_the_next_is_sent() -> None:
    seen = asyncio.Event()

    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()
        await asyncio.wait_for(seen.wait(), DEADLINE_S)
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
        await writer.drain()

    async with rig(script) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(POST + b"content-length: 2\r\n\r\n{}")
        await asyncio.wait_for(reader.readuntil(b"first\r\n"), DEADLINE_S)
        seen.set()
        assert await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), DEADLINE_S) == b"6\r\nsecond\r\n0\r\n\r\n"
        writer.close()


async def test_half_an_answer_never_looks_whole() -> None:
    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()

    async with rig(script) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(POST + b"content-length: 2\r\n\r\n{}")
        try:
            data = await asyncio.wait_for(reader.read(), DEADLINE_S)
        except ConnectionResetError:
            data = b""
        assert not data.endswith(b"0\r\n\r\n")
        writer.close()


async def test_a_client_that_leaves_closes_the_connection_to_the_engine() -> None:
    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()
        if not await reader.read(1):
            raise ConnectionResetError

    async with rig(script) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(POST + b"content-length: 2\r\n\r\n{}")
        await asyncio.wait_for(reader.readuntil(b"first"), DEADLINE_S)
        writer.close()
        await until(lambda: made.engines[0].closed_by_peer == 1)


async def test_a_call_moves_to_another_engine_while_no_byte_has_come() -> None:
    async def hang_up(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    async with rig(hang_up, answer_json) as made:
        for _ in range(4):
            answer = await made.post(headers="x-agentserving-program-id: p\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            assert header(answer, b"x-agentserving-engine") == b"e1"


async def test_no_engine_is_a_503_with_retry_after() -> None:
    async with rig() as made:
        answer = await made.post()
        assert answer.startswith(b"HTTP/1.1 503")
        assert header(answer, b"retry-after") == b"1"


async def test_an_anthropic_client_gets_its_own_envelope() -> None:
    async with rig() as made:
        answer = await made.post("/v1/messages")
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["type"] == "error"


async def test_calls_are_served_while_the_control_plane_is_away() -> None:
    async with rig(answer_json) as made:
        await made.grpc_server.stop(None)
        await until(lambda: not made.admission.connected)
        answer = await made.post(headers="x-agentserving-program-id: p\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert header(made.engines[0].requests[0], b"x-session-id") == b""


async def test_models_are_asked_of_an_engine_without_a_call() -> None:
    async with rig(answer_json) as made:
        assert (await made.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert not made.plane.table.rows


async def test_unknown_parent_calls_are_ignored() -> None:
    async with rig(answer_json) as made:
        first = await made.post(headers="x-agentserving-program-id: p1\r\n")
        known = header(first, b"x-agentserving-call-id").decode()
        claimed = f"p1.1.99, other.1.0, nonsense, {known}"
        answer = await made.post(
            headers=f"x-agentserving-program-id: p1\r\nx-agentserving-parent-call-ids: {claimed}\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 200 OK")
        (call,) = [c for c in made.plane.table.rows[("default", "p1")].calls.values() if c.call_id != known]
        assert call.parents == [known]


@pytest.mark.parametrize(("path", "kind"), [("/v1/completions", "openai"), ("/v1/messages", "anthropic")])
async def test_backpressure_is_a_429_with_retry_after_in_the_clients_envelope(path: str, kind: str) -> None:
    async with rig(answer_json) as made:
        made.plane.commits._max_pending = 0
        answer = await made.post(path)
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests")
        assert header(answer, b"retry-after") == b"1"
        error = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
        assert error["type"] == "rate_limit_error"
        assert kind == "anthropic" or error["code"] == "store_backpressure"
        assert made.engines[0].requests == []


async def test_a_call_that_no_engine_answers_is_not_left_open() -> None:
    async def hang_up(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    async with rig(hang_up) as made:
        answer = await made.post(headers="x-agentserving-program-id: p\r\n")
        assert answer.startswith(b"HTTP/1.1 502")
        await until(lambda: not made.plane.table.open_calls)


async def test_a_call_that_the_engine_refuses_is_not_left_open() -> None:
    async def refuses(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()

    async with rig(refuses) as made:
        answer = await made.post(headers="x-agentserving-program-id: p\r\n")
        assert answer.startswith(b"HTTP/1.1 400")
        await until(lambda: not made.plane.table.open_calls)
        assert not any(engine.in_flight for engine in made.plane.engines.engines.values())
