"""What clients get from the front, and what engines get."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from agentserving.contract.ticket import verify
from agentserving_gateway.envoy import names
from gateway.gateway_rig import KEYS, Rig, Script, answer_and_stay, answer_json, dechunked, rig, until, value
from gateway.test_every_call_ends_once import begins_and_waits, breaks_off, hangs_up, refuses

pytestmark = pytest.mark.asyncio(loop_scope="module")

POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
WHOLE = POST + b"content-length: 2\r\n\r\n{}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Rig]:
    async with rig(answer_json) as made:
        yield made


@pytest.fixture
def made(shared: Rig) -> Rig:
    """One engine, which answers and has not been sent anything."""
    shared.play(answer_json)
    return shared


async def test_a_call_carries_a_ticket_and_the_answer_says_who_served_it(made: Rig) -> None:
    answer = await made.post(headers="x-agentserving-program-id: p1\r\nX-Session-ID: forged\r\npriority: 1\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert value(answer, "x-agentserving-program-id") == "p1"
    assert value(answer, "x-agentserving-engine") == "e0"
    assert value(answer, "x-accel-buffering") == "no"
    (request,) = made.engines[0].requests
    ticket = verify(value(request, "x-session-id"), KEYS, engine_id="e0", now_unix_s=0).ticket
    assert ticket.program_id == "p1"
    assert value(request, "x-request-id") == ticket.call_id == value(answer, "x-agentserving-call-id")
    assert request.lower().count(b"x-session-id") == 1


@pytest.mark.parametrize("program", ["x-agentserving-program-id: reserved\r\n", ""])
async def test_no_header_that_an_engine_or_envoy_believes_is_taken_from_a_client(made: Rig, program: str) -> None:
    forged = dict.fromkeys(names.RESERVED, "1")
    forged |= {
        "x-gateway-destination-endpoint": "127.0.0.1:1",
        "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-upstream-rq-per-try-timeout-ms": "1",
        "x-envoy-original-path": "/v1/load_lora_adapter",
        "x-envoy-original-url": "/v1/load_lora_adapter",
        "x-envoy-internal": "true",
        "x-envoy-expected-rq-timeout-ms": "1",
        "x-envoy-hedge-on-per-try-timeout": "true",
        "x-envoy-decorator-operation": "forged",
        "x-envoy-anything-that-comes-later": "1",
        "x-agentserving-look": "1",
    }
    # An engine that trusts one of these would take a stranger's word for it.
    lines = program + "".join(f"{name}: {text}\r\n{name.upper()}: {text}\r\n" for name, text in forged.items())
    nominated = f"connection: {', '.join(names.RESERVED[:6])}\r\n"
    for extra in ("", nominated):
        made.engines[0].requests.clear()
        answer = await made.post(headers=lines + extra)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        (request,) = made.engines[0].requests
        assert verify(value(request, "x-session-id"), KEYS, engine_id="e0", now_unix_s=0).ticket.call_id
        head = request.partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")[1:]
        arrived = [line.partition(":")[0] for line in head]
        assert not [name for name in arrived if name.startswith("x-envoy-")]
        assert value(request, "x-agentserving-tenant") == "default"
        set_by_us = {
            "x-session-id", "x-request-id", "x-agentserving-call-id", "x-gateway-destination-endpoint",
            "x-agentserving-tenant",
        }  # fmt: skip
        kept = {"x-client-request-id", *set_by_us}
        assert not [name for name in arrived if name in forged and name not in kept]
        assert all(arrived.count(name) == 1 for name in set_by_us)


async def test_a_clients_request_id_comes_back_and_the_engine_gets_the_calls(made: Rig) -> None:
    answer = await made.post(headers="x-request-id: mine-1\r\n")
    assert value(answer, "x-request-id") == "mine-1"
    (request,) = made.engines[0].requests
    assert value(request, "x-request-id") == value(answer, "x-agentserving-call-id")
    assert value(request, "x-client-request-id") == "mine-1"


async def test_open_codes_session_names_the_program_and_is_no_ticket(made: Rig) -> None:
    answer = await made.post(headers="x-session-id: opencode-7\r\n")
    assert value(answer, "x-agentserving-program-id") == "opencode-7"
    assert verify(value(made.engines[0].requests[0], "x-session-id"), KEYS, engine_id="e0", now_unix_s=0).ticket


@pytest.mark.parametrize(
    ("path", "headers", "seen", "query"),
    [
        ("/v1/completions", "", b"/v1/completions", b""),
        ("/v1/messages", "session-id: s\r\n", b"/v1/messages", b"?beta=true"),
        ("/v1/responses", "", b"/v1/responses", b""),  # decided by its body
        ("/v1/messages/count_tokens", "", b"/v1/messages/count_tokens", b""),
    ],
)
async def test_a_url_may_name_the_program_and_engines_see_the_path_without_it(
    path: str, headers: str, seen: bytes, query: bytes, made: Rig
) -> None:
    answer = await made.post(f"/p/run-1{path}{query.decode()}", headers=headers)
    assert answer.startswith(b"HTTP/1.1 200 OK"), answer
    (request,) = made.engines[0].requests
    assert request.startswith(b"POST " + seen + query + b" HTTP/1.1\r\n")
    if "count" not in path:
        assert value(answer, "x-agentserving-program-id") == "run-1"


async def test_below_a_program_the_same_paths_are_served_and_no_others(made: Rig) -> None:
    get = "GET /p/run-1/v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert (await made.send(get.encode())).startswith(b"HTTP/1.1 200 OK")
    (request,) = made.engines[0].requests
    assert request.startswith(b"GET /v1/models HTTP/1.1\r\n")
    for path in ("/p/run-1/health", "/p//v1/completions", "/p/a/p/b/v1/completions", "/p/run-1/metrics"):
        assert (await made.post(path)).startswith(b"HTTP/1.1 404"), path
    get = "GET /p/run-1/v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert (await made.send(get.encode())).startswith(b"HTTP/1.1 405")
    assert len(made.engines[0].requests) == 1


async def test_unknown_fields_and_bodies_pass_unchanged(made: Rig) -> None:
    body = b'{"model":"m","unknown":{"x":[1,2]},"temperature":0.10}'
    await made.post(body=body)
    assert made.engines[0].requests[0].endswith(b"\r\n\r\n" + body)


async def test_a_chunked_request_is_understood(made: Rig) -> None:
    data = POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    assert (await made.send(data)).startswith(b"HTTP/1.1 200")
    assert made.engines[0].requests[0].endswith(b"\r\n\r\n{}")


async def test_pipelined_requests_are_answered_in_their_order(made: Rig) -> None:
    made.play(answer_and_stay)
    one = POST + b"x-request-id: one\r\ncontent-length: 2\r\n\r\n{}"
    two = POST + b"x-request-id: two\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    writer.write(one + two)
    async with asyncio.timeout(20):
        answers = await reader.read()
    assert [line for line in answers.split(b"\r\n") if line.startswith(b"x-request-id")] == [
        b"x-request-id: one", b"x-request-id: two",
    ]  # fmt: skip
    assert b"connection: close" in answers
    writer.close()


async def test_a_client_that_asks_for_it_gets_its_connection_closed(made: Rig) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    writer.write(POST + b"connection: close\r\ncontent-length: 2\r\n\r\n{}")
    async with asyncio.timeout(20):
        assert value(await reader.read(), "connection") == "close"
    writer.close()


async def test_a_connection_serves_one_call_after_another(made: Rig) -> None:
    made.play(answer_and_stay)
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    for _ in range(3):
        writer.write(WHOLE)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).startswith(b"HTTP/1.1 200")
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
        whole = POST + b"content-length: %d\r\n\r\n" % size + b"{" + b" " * (size - 2) + b"}"
        try:
            async with asyncio.timeout(20):
                for _ in range(2):
                    writer.write(whole)
                    asyncio.get_running_loop().call_later(0.05, hang_up.set)
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                    assert await reader.readuntil(b"0\r\n\r\n")
        finally:
            writer.close()
        bodies = [request.partition(b"\r\n\r\n")[2] for request in made.engines[0].requests]
        assert [len(body) for body in bodies] == [size, size]


async def test_calls_share_a_connection_to_the_engine_and_a_client_that_goes_does_not_break_it(made: Rig) -> None:
    made.play(answer_and_stay)
    for _ in range(4):
        answer = await made.post(headers="connection: close\r\n")
        assert answer.endswith(b"\r\n\r\n{}")
    assert len(made.engines[0].requests) == 4
    assert made.engines[0].accepted == 1


async def test_an_idle_connection_that_the_engine_closed_is_replaced_by_a_new_one() -> None:
    async def once_then_vanish(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_and_stay(request, reader, writer)
        await reader.readexactly(1)  # the next request has begun: hang up on it
        writer.transport.abort()

    async with rig(once_then_vanish) as made:
        for _ in range(3):
            assert (await made.post()).endswith(b"\r\n\r\n{}")
        # The second call met the closing connection and went to the same engine again.
        assert len(made.engines[0].requests) == 3


@pytest.mark.parametrize(
    ("head", "sent", "wanted"),
    [
        (b"content-length: 2", b"{}", b"{}"),
        (b"transfer-encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n", b"{}"),
        # A chunk may end as the last chunk does.
        (b"transfer-encoding: chunked", b"7\r\n0\r\n\r\n{}\r\n0\r\n\r\n", b"0\r\n\r\n{}"),
    ],
)
async def test_an_answer_ends_where_its_framing_says(made: Rig, head: bytes, sent: bytes, wanted: bytes) -> None:
    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + sent[:1])
        await writer.drain()
        writer.write(sent[1:])
        return True

    made.play(script)
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    try:
        async with asyncio.timeout(20):
            for _ in range(2):
                writer.write(WHOLE)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                if b"chunked" in head:
                    assert await dechunked(reader) == wanted
                else:
                    assert await reader.readexactly(len(wanted)) == wanted
    finally:
        writer.close()


async def test_what_an_engine_sends_after_its_answer_is_no_answer_to_the_next_client(made: Rig) -> None:
    async def splits(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await writer.drain()
        return True

    made.play(splits)
    first = await made.post(headers="connection: close\r\n")
    assert first.endswith(b"\r\n\r\n{}") or first.startswith(b"HTTP/1.1 502"), "it is either whole or refused"
    made.play(answer_json)
    assert (await made.post()).endswith(b"\r\n\r\n{}")


async def test_a_streamed_chunk_is_passed_on_before_the_next_is_sent(made: Rig) -> None:
    seen = asyncio.Event()

    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"5\r\nfirst\r\n")
        await writer.drain()
        await asyncio.wait_for(seen.wait(), 10)
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
        await writer.drain()

    made.play(script)
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    writer.write(WHOLE)
    await asyncio.wait_for(reader.readuntil(b"first\r\n"), 10)
    seen.set()
    assert await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10) == b"6\r\nsecond\r\n0\r\n\r\n"
    writer.close()


async def test_half_an_answer_never_looks_whole(made: Rig) -> None:
    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()

    made.play(script)
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    writer.write(WHOLE)
    try:
        data = await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        data = b""
    assert not data.endswith(b"0\r\n\r\n")
    writer.close()


async def test_a_client_that_leaves_closes_the_connection_to_the_engine(made: Rig) -> None:
    made.play(begins_and_waits)
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    writer.write(WHOLE)
    await asyncio.wait_for(reader.readuntil(b"first"), 10)
    writer.close()
    await until(lambda: made.engines[0].closed_by_peer == 1)


async def test_a_call_moves_to_another_engine_while_no_byte_has_come() -> None:
    async with rig(hangs_up, answer_json) as made:
        for _ in range(4):
            answer = await made.post(headers="x-agentserving-program-id: p\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            assert value(answer, "x-agentserving-engine") == "e1"


async def test_without_an_engine_the_refusal_reaches_the_client_with_retry_after_in_its_envelope() -> None:
    async with rig() as made:
        answer = await made.post()
        assert answer.startswith(b"HTTP/1.1 503")
        assert value(answer, "retry-after") == "1"
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "no_engine"
        answer = await made.post("/v1/messages")
        assert answer.startswith(b"HTTP/1.1 503")
        document = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert document["type"] == "error"
        assert document["error"]["type"] == "overloaded_error"


async def test_calls_are_served_while_the_control_plane_is_away() -> None:
    async with rig(answer_json) as made:
        await made.grpc_server.stop(None)
        await until(lambda: not made.admission.connected)
        answer = await made.post(headers="x-agentserving-program-id: p\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert value(made.engines[0].requests[0], "x-session-id") == ""


async def test_models_are_asked_of_an_engine_without_a_call(made: Rig) -> None:
    rows = len(made.plane.table.rows)
    assert (await made.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert len(made.plane.table.rows) == rows


async def test_unknown_parent_calls_are_ignored(made: Rig) -> None:
    first = await made.post(headers="x-agentserving-program-id: parents\r\n")
    known = value(first, "x-agentserving-call-id")
    claimed = f"parents.1.99, other.1.0, nonsense, {known}"
    program = "x-agentserving-program-id: parents\r\n"
    answer = await made.post(headers=f"{program}x-agentserving-parent-call-ids: {claimed}\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    calls = made.plane.table.rows[("default", "parents")].calls  # type: ignore[index]
    (call,) = [call for call in calls.values() if call.call_id != known]
    assert call.parents == [known]


@pytest.mark.parametrize(("path", "kind"), [("/v1/completions", "openai"), ("/v1/messages", "anthropic")])
async def test_backpressure_is_a_429_with_retry_after_in_the_clients_envelope(
    made: Rig, path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made.plane.commits, "_max_pending", 0)
    answer = await made.post(path)
    assert answer.startswith(b"HTTP/1.1 429 Too Many Requests")
    assert value(answer, "retry-after") == "1"
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "rate_limit_error"
    assert kind == "anthropic" or error["code"] == "store_backpressure"
    assert made.engines[0].requests == []


@pytest.mark.parametrize(("script", "status"), [(hangs_up, 502), (refuses(400), 400), (breaks_off, 200)])
async def test_a_call_that_its_engine_does_not_serve_is_not_left_open(script: Script, status: int, made: Rig) -> None:
    made.play(script)
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    writer.write(POST + b"x-agentserving-program-id: open\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    calls = made.plane.table.rows[("default", "open")].calls  # type: ignore[index]
    await until(lambda: not calls)
