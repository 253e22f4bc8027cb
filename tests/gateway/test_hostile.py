"""Malicious and broken clients and engines: they are answered or closed, and the gateway keeps serving."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_asyncio
import structlog
from gateway.gateway_rig import Rig, Script, answer_json, rig, until, value

pytestmark = pytest.mark.asyncio(loop_scope="module")

POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
WHOLE = POST + b"content-length: 2\r\n\r\n{}"


@contextmanager
def no_trace() -> Iterator[None]:
    """Asserts that nothing was logged as an error or reached the loop's exception handler."""
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    with structlog.testing.capture_logs() as logged:
        yield
    assert not unseen
    assert not [entry for entry in logged if entry["log_level"] in ("error", "critical")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Rig]:
    async with rig(answer_json) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient() -> AsyncIterator[Rig]:
    """A front that waits for heads and bodies only briefly."""
    async with rig(answer_json, head_s=0.3, request_s=0.3, keep_alive_s=0.3) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def made(shared: Rig) -> AsyncIterator[Rig]:
    """A front under attack, which must still serve afterwards."""
    shared.play(answer_json)
    with no_trace():
        yield shared
        shared.play(answer_json)
        assert (await shared.send(WHOLE)).startswith(b"HTTP/1.1 200")
    assert shared.envoy.returncode is None


async def send_all(port: int, data: bytes, bound_s: float = 15.0) -> bytes:
    """One whole answer, or what has come when the front closes its side.

    As clients do (httpcore, urllib3), it reads the answer even when the rest of the request could not be sent.
    """

    def exchange() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=bound_s) as client:
            answer = b""
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
            with contextlib.suppress(ConnectionError):
                while not _is_whole(answer) and (more := client.recv(1 << 20)):
                    answer += more
            return answer

    return await asyncio.to_thread(exchange)


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = value(head + end, "content-length")
    return bool(end and length and len(body) >= int(length))


CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
BIG = b"x" * (1 << 20)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(CHUNKED[:-2] + b"content-length: 2\r\n\r\n0\r\n\r\n", 400, id="both framings"),
        pytest.param(POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400, id="two lengths"),
        pytest.param(POST + b"content-length: 2000000\r\n\r\n", 413, id="a body over the limit"),
        pytest.param(CHUNKED + b"186a00\r\n" + b"x" * 0x186A00 + b"\r\n", 413, id="chunks over the limit"),
        pytest.param(b"POST /v1/nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", 404, id="no route"),
        pytest.param(b"GET /v1/completions HTTP/1.1\r\nhost: x\r\n\r\n", 405, id="no such method"),
        pytest.param(POST + b'content-length: 18\r\n\r\n{"session_id":"x"}', 400, id="a session id"),
        pytest.param(POST + b'content-length: 24\r\n\r\n{"sessio\\u006e_id": "x"}', 400, id="an escaped session id"),
        pytest.param(POST + b"x: " + BIG + b"\r\ncontent-length: 2\r\n\r\n{}", 431, id="a head of 1 MB"),
        pytest.param(POST + b"x: y\r\n" * 20_000 + b"content-length: 2\r\n\r\n{}", 431, id="20,000 headers"),
        pytest.param(b"POST /" + BIG + b" HTTP/1.1\r\n\r\n", 431, id="a target of 1 MB"),
        pytest.param(POST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}", 400, id="a length twice"),
        pytest.param(POST + b"content-length: 99999999999999999999\r\n\r\n{}", 400, id="a length beyond 64 bits"),
        pytest.param(POST + b"content-length: +2\r\n\r\n{}", 400, id="a signed length"),
        pytest.param(POST + b"content-length: 2, 2\r\n\r\n{}", 400, id="a list of lengths"),
        pytest.param(POST + b"content-length : 2\r\n\r\n{}", 400, id="a space before the colon"),
        pytest.param(CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n", 400, id="a negative chunk"),
        pytest.param(CHUNKED + b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n", 400, id="a chunk beyond 64 bits"),
        pytest.param(CHUNKED + b"2\r\n{}0\r\n\r\n", 400, id="a chunk without its end"),
        pytest.param(POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, id="another coding"),
        pytest.param(POST + b"transfer-encoding: identity\r\n\r\n", 501, id="identity coding"),
        pytest.param(POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 501, id="an unknown coding"),
        pytest.param(POST + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}", 400, id="a zero byte in a header"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS to a plain port"),
        pytest.param(
            b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 426,
            id="a WebSocket",
        ),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="CONNECT"),
        pytest.param(b"POST /v1%2Fcompletions HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="an escaped path"),
        pytest.param(b"POST /v1/completions/../models HTTP/1.1\r\nhost: x\r\n\r\n", 405, id="dots to a known path"),
        pytest.param(b"OPTIONS /v1/completions HTTP/1.1\r\nhost: x\r\n\r\n", 405, id="OPTIONS"),
    ],
)  # fmt: skip
async def test_a_malformed_request_is_answered_and_reaches_no_engine(made: Rig, data: bytes, status: int) -> None:
    answer = await send_all(made.port, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert not made.engines[0].requests


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"session_id": "forged"}'.encode("utf-16-le"), id="UTF-16"),
        pytest.param('{"session_id": "forged"}'.encode("utf-32"), id="UTF-32"),
        pytest.param(b'{"session_id": "x", "y":' + b"[" * 200_000, id="nested 200,000 deep"),
        pytest.param(b'{"vllm_xargs": {"session\\u005fid": "x"}}', id="an escape inside"),
    ],
)
async def test_a_session_id_cannot_be_hidden_in_the_body(made: Rig, body: bytes) -> None:
    """vLLM would let it win over the ticket."""
    answer = await made.post(body=body)
    assert answer.startswith(b"HTTP/1.1 400")
    assert not made.engines[0].requests


@pytest.mark.parametrize(
    ("data", "reached"),
    [
        pytest.param(b"POST /v1/completions HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}", b"{}", id="HTTP/1.0"),
        pytest.param(POST + b"x-name: \xff\xfe\r\ncontent-length: 2\r\n\r\n{}", b"{}", id="a header that is not UTF-8"),
        pytest.param(POST + b"content-length: 4\r\n\r\n\xff\xfe{}", b"\xff\xfe{}", id="a body that is not UTF-8"),
        pytest.param(CHUNKED + b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\n\r\n", b"{}", id="a chunk with an extension"),
        pytest.param(b"POST /v1/completions HTTP/1.1\nhost: x\ncontent-length: 2\n\n{}", b"{}", id="bare line feeds"),
        pytest.param(POST + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}", b"{}", id="a folded header"),
        pytest.param(
            POST + b"x: a\r\n transfer-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}", b"{}", id="a framing in a fold"
        ),
        pytest.param(
            POST + b"x: a\rtransfer-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
            b"{}",
            id="a framing after a bare CR",
        ),
        pytest.param(
            CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"2\r\n{}\r\n0\r\n\r\nGET /docs HTTP/1.1\r\n\r\n",
            b"{}",
            id="chunks in HTTP/1.0, and more",
        ),
        pytest.param(
            b"POST http://a/v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
            b"{}",
            id="an absolute target",
        ),
    ],
)
async def test_unusual_but_valid_requests_are_served(made: Rig, data: bytes, reached: bytes) -> None:
    answer = await made.send(data)
    assert answer.split(b" ")[1] == b"200"
    (request,) = made.engines[0].requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert body == reached
    # The engine gets one clean request, whatever the client's looked like.
    lines = head.split(b"\r\n")
    assert not [line for line in lines if b"\n" in line or b"\r" in line or line.startswith((b" ", b"\t"))]
    assert value(request, "transfer-encoding") in ("", "chunked")


async def test_a_trailer_is_not_taken_for_a_header(made: Rig) -> None:
    trailers = b"x-agentserving-program-id: victim\r\nx-evil: 1\r\n"
    answer = await made.send(CHUNKED + b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"victim" not in answer
    assert b"evil" not in made.engines[0].requests[0]
    assert made.engines[0].requests[0].endswith(b"\r\n\r\n{}")


async def test_garbage_after_a_good_request_does_not_spoil_its_answer(made: Rig) -> None:
    answer = await send_all(made.port, WHOLE + b"\x00\x01 garbage \r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(made.engines[0].requests) == 1


async def test_a_client_that_is_still_sending_gets_the_refusal_of_its_body(made: Rig) -> None:
    body = b"x" * (10 << 20)
    head = POST + b"content-length: %d\r\n\r\n" % len(body)
    assert (await send_all(made.port, head + body)).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("data", "answered"),
    [
        pytest.param(b"", b"", id="says nothing"),
        pytest.param(POST, b"HTTP/1.1 408", id="a head without an end"),
        pytest.param(POST + b"content-length: 9\r\n\r\n{", b"HTTP/1.1 408", id="half a body"),
        pytest.param(CHUNKED + b"5\r\nab", b"HTTP/1.1 408", id="half a chunk"),
    ],
)
async def test_a_client_that_stops_in_mid_request_is_disconnected(impatient: Rig, data: bytes, answered: bytes) -> None:
    answer = await send_all(impatient.port, data, 10)
    assert answer.startswith(answered)
    assert bool(answer) == bool(answered)
    assert not impatient.engines[0].requests


async def test_a_trickle_of_header_lines_does_not_extend_the_deadline(impatient: Rig) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.port)
    writer.write(POST)
    answer = asyncio.create_task(reader.readuntil(b"\r\n"))
    async with asyncio.timeout(10):
        while not answer.done():
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.02)
    assert (await answer).startswith(b"HTTP/1.1 408")
    writer.close()


async def test_a_client_that_never_reads_costs_little_memory_and_stops_the_engine(made: Rig) -> None:
    """128 MB are to come; what lies between is in buffers of Envoy and of the kernel."""
    sent = 0

    async def floods(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(2_000):
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()
            sent += 0x10000

    made.play(floods)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", made.port))
        await loop.sock_sendall(client, POST + b'content-length: 15\r\n\r\n{"stream":true}')
        seen, since = -1, loop.time()
        async with asyncio.timeout(20):
            while not sent or sent != seen or loop.time() - since < 0.5:
                if sent != seen:
                    seen, since = sent, loop.time()
                await asyncio.sleep(0.05)
        assert sent < 32 << 20
    await until(lambda: made.engines[0].closed_by_peer == 1)


def _says(data: bytes) -> Script:
    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return script


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\xff garbage\r\n\r\n", id="garbage"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", id="half a head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + BIG, id="a head of 1 MB"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", id="a negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}", id="two lengths"),
        pytest.param(b"HTTP/2 200\r\n\r\n", id="HTTP/2"),
    ],
)
async def test_an_engine_whose_answer_is_not_http_counts_as_failed(made: Rig, data: bytes) -> None:
    made.play(_says(data))
    answer = await made.send(WHOLE)
    assert answer.startswith(b"HTTP/1.1 502")
    assert b"no engine answered" in answer
    await until(lambda: made.plane.table.open_calls == 0)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}", id="less than announced"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", id="no last chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", id="a bad chunk"),
    ],
)
async def test_an_answer_that_breaks_off_never_looks_whole(made: Rig, data: bytes) -> None:
    made.play(_says(data))
    answer = await send_all(made.port, WHOLE)
    if b"content-length: 10" in answer:
        assert len(answer.partition(b"\r\n\r\n")[2]) < 10
    else:
        assert not answer.endswith(b"\r\n0\r\n\r\n") or b"zz" in answer
