"""Malicious and broken clients and engines: they are answered or closed, and the gateway keeps serving."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import structlog
from agentserving_gateway import client_connection
from gateway.gateway_rig import Rig, Script, answer_json, rig, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.eventually import DEADLINE_S

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


@asynccontextmanager
async def attacked(*scripts: Script, serves: bool = True) -> AsyncIterator[Rig]:
    """A gateway that must still serve when the block ends."""
    async with rig(*(scripts or (answer_json,))) as made:
        with no_trace():
            yield made
            if serves:
                assert (await made.send(WHOLE)).startswith(b"HTTP/1.1 200")


async def send_all(port: int, data: bytes) -> bytes:
    """Everything that comes back until the gateway closes its side; b"" for a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(DEADLINE_S):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
BIG = b"x" * (1 << 20)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(POST + b"x: " + BIG + b"\r\ncontent-length: 2\r\n\r\n{}", 431, id="a head of 1 MB"),
        pytest.param(POST + b"x: y\r\n" * 20_000 + b"content-length: 2\r\n\r\n{}", 431, id="20,000 headers"),
        pytest.param(b"POST /" + BIG + b" HTTP/1.1\r\n\r\n", 431, id="a target of 1 MB"),
        pytest.param(b"POST /v1/completions HTTP/1.1\nhost: x\ncontent-length: 2\n\n{}", 400, id="bare line feeds"),
        pytest.param(POST + b"content-length: 2\n\r\n{}", 400, id="one bare line feed"),
        pytest.param(POST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}", 400, id="a length twice"),
        pytest.param(POST + b"content-length: 99999999999999999999\r\n\r\n{}", 400, id="a length beyond 64 bits"),
        pytest.param(POST + b"content-length: +2\r\n\r\n{}", 400, id="a signed length"),
        pytest.param(POST + b"content-length: 2, 2\r\n\r\n{}", 400, id="a list of lengths"),
        pytest.param(POST + b"content-length : 2\r\n\r\n{}", 400, id="a space before the colon"),
        pytest.param(CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n", 400, id="a negative chunk"),
        pytest.param(CHUNKED + b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n", 400, id="a chunk beyond 64 bits"),
        pytest.param(CHUNKED + b"2\r\n{}0\r\n\r\n", 400, id="a chunk without its end"),
        pytest.param(POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, id="another coding"),
        pytest.param(POST + b"transfer-encoding: identity\r\n\r\n", 400, id="identity coding"),
        pytest.param(POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400, id="an unknown coding"),
        pytest.param(POST + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}", 400, id="a zero byte in a header"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 32, 400, id="the preface of HTTP/2"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS to a plain port"),
        pytest.param(
            POST + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\n{}", 400, id="an upgrade to HTTP/2"
        ),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="CONNECT"),
        pytest.param(b"POST http://evil/v1/completions HTTP/1.1\r\n\r\n", 404, id="an absolute target"),
        pytest.param(b"POST /v1%2Fcompletions HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="an escaped path"),
        pytest.param(b"POST /v1/completions/../models HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="dots"),
        pytest.param(b"OPTIONS /v1/completions HTTP/1.1\r\nhost: x\r\n\r\n", 405, id="OPTIONS"),
        pytest.param(b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 405, id="HEAD"),
        pytest.param(b"POST /v1/completions HTTP/9.9\r\nhost: x\r\n\r\n", 400, id="an unknown version"),
    ],
)  # fmt: skip
async def test_a_malformed_request_is_answered_and_reaches_no_engine(data: bytes, status: int) -> None:
    async with attacked() as made:
        answer = await send_all(made.port, data)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        if not data.startswith(b"HEAD"):
            assert json.loads(body)["error"]["message"]
        else:
            assert not body
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
async def test_a_session_id_cannot_be_hidden_in_the_body(body: bytes) -> None:
    """vLLM would let it win over the ticket."""
    async with attacked() as made:
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
    ],
)
async def test_unusual_but_valid_requests_are_served(data: bytes, reached: bytes) -> None:
    async with attacked() as made:
        answer = await made.send(data)
        assert answer.startswith(b"HTTP/1.1 200")
        assert made.engines[0].requests[0].endswith(b"\r\n\r\n" + reached)


async def test_a_trailer_is_not_taken_for_a_header() -> None:
    trailers = b"x-agentserving-program-id: victim\r\nx-evil: 1\r\n"
    async with attacked() as made:
        answer = await made.send(CHUNKED + b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"victim" not in answer
        assert b"evil" not in made.engines[0].requests[0]
        assert made.engines[0].requests[0].count(b"content-length") == 1


async def test_garbage_after_a_good_request_does_not_spoil_its_answer() -> None:
    async with attacked() as made:
        answer = await send_all(made.port, WHOLE + b"\x00\x01 garbage \r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answer


async def test_a_refused_body_is_drained_so_that_the_client_gets_the_refusal() -> None:
    """Closing immediately would reset the connection of a client that is still sending."""
    body = b"x" * (10 << 20)
    async with attacked() as made:
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
async def test_a_client_that_stops_in_mid_request_is_disconnected(
    data: bytes, answered: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEAD_DEADLINE_S", "BODY_DEADLINE_S", "LINGER_S"):
        monkeypatch.setattr(client_connection, name, 0.2)
    async with attacked() as made:
        answer = await send_all(made.port, data)
        assert answer.startswith(answered)
        assert bool(answer) == bool(answered)
        assert not made.engines[0].requests


async def test_a_trickle_of_header_lines_does_not_extend_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "HEAD_DEADLINE_S", 0.3)
    async with attacked() as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(POST)
        answer = asyncio.create_task(reader.readuntil(b"\r\n"))
        async with asyncio.timeout(DEADLINE_S):
            while not answer.done():
                writer.write(b"x: y\r\n")
                await asyncio.sleep(0.02)
        assert (await answer).startswith(b"HTTP/1.1 408")
        writer.close()


async def _floods(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(2_000):
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")


async def test_a_client_that_never_reads_is_disconnected_and_costs_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "STALL_S", 1.0)
    open_ones: list[client_connection.ClientConnection] = []
    made_by = client_connection.ClientConnection.connection_made

    def remember(self: client_connection.ClientConnection, transport: asyncio.BaseTransport) -> None:
        open_ones.append(self)
        made_by(self, transport)

    monkeypatch.setattr(client_connection.ClientConnection, "connection_made", remember)
    async with attacked(_floods, serves=False) as made:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", made.port))
            await loop.sock_sendall(client, POST + b'content-length: 15\r\n\r\n{"stream":true}')
            largest = 0

            def gone() -> bool:
                nonlocal largest
                transport = open_ones[0]._transport
                largest = max(largest, transport.get_write_buffer_size() if transport else 0)
                return transport is None

            await until(lambda: bool(open_ones))
            await until(gone)
        assert 0 < largest < 1 << 20, "128 MB were to come"
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
async def test_an_engine_whose_answer_is_not_http_counts_as_failed(data: bytes) -> None:
    async with attacked(_says(data), serves=False) as made:
        answer = await made.send(WHOLE)
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"no engine answered (tried e0)" in answer
        await until(lambda: not made.plane.table.open_calls)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}", id="less than announced"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", id="no last chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", id="a bad chunk"),
    ],
)
async def test_an_answer_that_breaks_off_never_looks_whole(data: bytes) -> None:
    async with attacked(_says(data), serves=False) as made:
        answer = await send_all(made.port, WHOLE)
        if b"content-length: 10" in answer:
            assert len(answer.partition(b"\r\n\r\n")[2]) < 10
        else:
            assert not answer.endswith(b"\r\n0\r\n\r\n") or b"zz" in answer


_TOKENS = [
    b"POST ", b"GET ", b"/v1/completions", b"/v1/models", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r",
    b"\r\n\r\n",
    b"host: x", b"content-length: ", b"transfer-encoding: chunked", b"expect: 100-continue", b"connection: close",
    b"x-agentserving-program-id: p", b"0", b"1", b"5\r\nhello\r\n", b"{}", b'{"stream":true}', b": ", b"\x00", b"\xff",
    b" ", b"\t", b"upgrade: h2c", b"-1", b"ffffffffffffffff",
]  # fmt: skip
_FUZZ = st.lists(st.one_of(st.sampled_from(_TOKENS), st.binary(max_size=8)), max_size=24).map(b"".join)


def test_the_gateway_keeps_serving_whatever_bytes_it_receives() -> None:
    """One gateway, many clients: each is answered with HTTP or closed, without an error in the log."""
    loop = asyncio.new_event_loop()
    context = attacked()
    made = loop.run_until_complete(context.__aenter__())

    async def throw(parts: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        try:
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            writer.write_eof()
            async with asyncio.timeout(DEADLINE_S):
                answer = await reader.read()
            assert not answer or answer.startswith(b"HTTP/1.1 ")
        except ConnectionError:
            pass
        finally:
            writer.close()

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(_FUZZ, _FUZZ.map(lambda tail: POST + tail)), max_size=4))
    def fuzz(parts: list[bytes]) -> None:
        loop.run_until_complete(throw(parts))

    try:
        fuzz()
    finally:
        loop.run_until_complete(context.__aexit__(None, None, None))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
