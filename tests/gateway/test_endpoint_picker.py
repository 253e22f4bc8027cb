"""The picker behind gateways of others: a real Envoy with the ext_proc filter that GAIE implementations configure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import grpc
import pytest
from agentserving.contract.ticket import verify
from agentserving.v1 import types_pb2
from agentserving_gateway.ext_proc.service import LIVENESS, READINESS, SERVICE
from gateway.foreign_gateway import BUFFERED, DUPLEX, HEADS, SILENT, foreign
from gateway.gateway_rig import KEYS, Rig, answer_json, until, value
from gateway.test_every_call_ends_once import (
    PROGRAM,
    begins_and_waits,
    breaks_off,
    leave,
    never_answers,
    outcomes,
    refuses,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

MODES = pytest.mark.parametrize("mode", [DUPLEX, HEADS, BUFFERED], ids=["duplex", "heads", "buffered"])


REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n" + PROGRAM.encode() + b"\r\n{}"


def the_request(made: Rig) -> bytes:
    (request,) = [each for engine in made.engines for each in engine.requests]
    return request


@MODES
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "self-signed"])
async def test_a_call_reaches_the_chosen_engine_with_its_ticket(mode: dict[str, Any], tls: bool) -> None:
    async with foreign(answer_json, answer_json, mode=mode, tls=tls) as (made, _):
        answer = await made.post(headers=PROGRAM + "x-request-id: mine\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        (engine,) = [each for each in made.engines if each.requests]
        request = the_request(made)
        ticket = verify(value(request, "x-session-id"), KEYS, engine_id=engine.name, now_unix_s=0).ticket
        assert ticket.program_id == "p"
        assert value(request, "x-request-id") == ticket.call_id
        assert value(request, "x-gateway-destination-endpoint").split(",")[0] == engine.address
        assert value(answer, "x-agentserving-call-id") == ticket.call_id
        assert value(answer, "x-request-id") == "mine"
        await engine.report(request, outcome=types_pb2.OUTCOME_COMPLETED)
        await made.until_idle()


@pytest.mark.parametrize("mode", [DUPLEX, BUFFERED], ids=["duplex", "buffered"])
async def test_a_body_names_the_program_when_no_header_does(mode: dict[str, Any]) -> None:
    async with foreign(answer_json, mode=mode) as (made, _):
        body = json.dumps({"prompt": "x" * 300_000, "prompt_cache_key": "p"}).encode()
        assert (await made.post(body=body)).startswith(b"HTTP/1.1 200")
        request = the_request(made)
        assert request.endswith(body)
        assert verify(value(request, "x-session-id"), KEYS, engine_id="e0", now_unix_s=0).ticket.program_id == "p"


@MODES
async def test_a_body_of_many_megabytes_arrives_whole(mode: dict[str, Any]) -> None:
    size = 900_000 if mode is BUFFERED else 20 << 20  # what Envoy buffers by itself
    async with foreign(answer_json, mode=mode) as (made, _):
        body = b'{"prompt":"' + b"x" * size + b'"}'
        assert (await made.post(body=body, headers=PROGRAM)).startswith(b"HTTP/1.1 200")
        assert the_request(made).endswith(body)


async def test_a_body_that_is_too_large_to_look_for_the_program_is_refused() -> None:
    async with foreign(answer_json, max_body=100_000) as (made, _):
        answer = await made.post(body=b'{"prompt":"' + b"x" * 200_000 + b'"}')
        assert answer.startswith(b"HTTP/1.1 413")
        assert "larger than" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
        assert not made.engines[0].requests


async def test_a_path_below_a_prefix_is_the_same_call() -> None:
    async with foreign(answer_json) as (made, _):
        assert (await made.post("/llm/v1/chat/completions?a=b", headers=PROGRAM)).startswith(b"HTTP/1.1 200")
        assert value(the_request(made), "x-session-id")


async def test_requests_that_are_no_calls_are_balanced_without_tickets() -> None:
    async with foreign(answer_json, answer_json) as (made, _):
        for _ in range(4):
            assert (await made.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert [len(engine.requests) for engine in made.engines] == [2, 2]
        assert not any(value(each, "x-session-id") for engine in made.engines for each in engine.requests)


async def test_headers_that_engines_trust_are_never_the_clients() -> None:
    forged = (
        "x-vllm-priority: 0\r\nx-agentserving-call-id: c\r\nx-gateway-destination-endpoint: 127.0.0.1:1\r\n"
        "x-data-parallel-rank: 1\r\nx-session-id: forged\r\n"
    )
    async with foreign(answer_json, answer_json) as (made, _):
        assert (await made.post("/v1/embeddings", headers=forged)).startswith(b"HTTP/1.1 200")
        request = the_request(made)
        for name in ("x-vllm-priority", "x-agentserving-call-id", "x-data-parallel-rank", "x-session-id"):
            assert not value(request, name), name
        assert "127.0.0.1:1," not in value(request, "x-gateway-destination-endpoint") + ","


# -- subsets, fallbacks, refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [PROGRAM, ""], ids=["by head", "by body"])
async def test_only_engines_of_the_subset_are_chosen(headers: str) -> None:
    async with foreign(answer_json, answer_json, answer_json, subset=[1]) as (made, _):
        for _ in range(6):
            assert (await made.post(headers=headers)).startswith(b"HTTP/1.1 200")
        assert [len(engine.requests) for engine in made.engines] == [0, 6, 0]
        chosen = {value(each, "x-gateway-destination-endpoint") for each in made.engines[1].requests}
        assert chosen == {made.engines[1].address}


async def test_a_subset_without_an_engine_is_refused_with_503() -> None:
    async with foreign(answer_json, outside="192.0.2.1:8000") as (made, _):
        answer = await made.post(headers=PROGRAM)
        assert answer.startswith(b"HTTP/1.1 503")
        assert value(answer, "retry-after") == "1"
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "no_engine"
        await made.until_idle()


async def test_a_dead_engine_is_left_for_the_next_one_and_then_avoided() -> None:
    async with foreign(answer_json, answer_json, retries=2) as (made, _):
        server = made.engines[0].server
        assert server is not None
        server.close()
        answers = [await made.post(headers=f"x-agentserving-program-id: p{index}\r\n") for index in range(4)]
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        first = [value(each, "x-gateway-destination-endpoint").split(",")[0] for each in made.engines[1].requests]
        assert first.count(made.engines[0].address) == 1, "only the first call met it"


async def test_without_engines_a_call_is_refused_with_503_in_its_dialect() -> None:
    async with foreign(answer_json) as (made, _):
        made.engines[0].stream.cancel()
        await until(lambda: not made.admission.ready_engines())
        answer = await made.post("/v1/messages", headers=PROGRAM)
        assert answer.startswith(b"HTTP/1.1 503")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "overloaded_error"
        assert value(answer, "retry-after")


async def test_a_leader_that_sheds_load_is_429() -> None:
    async with foreign(answer_json) as (made, _):
        made.plane.commits._max_pending = 0
        answer = await made.post(headers=PROGRAM)
        assert answer.startswith(b"HTTP/1.1 429")
        assert value(answer, "retry-after") == "1"
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "rate_limit_error"
        assert not [each for each in made.engines[0].requests if each.startswith(b"POST")]


# -- every call ends once --------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize(("status", "outcome"), [(400, "REJECTED"), (429, "REJECTED"), (500, "FAILED")])
async def test_a_call_that_its_engine_does_not_serve_ends_with_what_happened(
    mode: dict[str, Any], status: int, outcome: str
) -> None:
    async with foreign(refuses(status), mode=mode) as (made, _):
        async with outcomes(made, 1) as ended:
            assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 %d" % status)
        assert ended == {f"OUTCOME_{outcome}": 1}
        await made.until_idle()


async def test_an_unreachable_engine_leaves_no_call() -> None:
    async with foreign(answer_json) as (made, _):
        server = made.engines[0].server
        assert server is not None
        server.close()
        async with outcomes(made, 1) as ended:
            assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 503")
        assert ended == {"OUTCOME_FAILED": 1}
        await made.until_idle()


@pytest.mark.parametrize("script", [never_answers, begins_and_waits])
@pytest.mark.parametrize("headers", [PROGRAM, ""], ids=["by head", "by body"])
async def test_clients_that_leave_at_any_moment_leave_no_call(script: Any, headers: str) -> None:
    async with foreign(script, script) as (made, _):
        await asyncio.gather(*(leave(made.port, index / 500, headers=headers) for index in range(60)))
        await made.until_idle(20)


async def test_a_client_that_leaves_while_the_leader_is_asked_leaves_no_call() -> None:
    async with foreign(answer_json) as (made, _):
        made.link.stall()
        async with outcomes(made, 1) as ended:
            await leave(made.port, 0.2)
            made.link.flow()
        assert ended == {"OUTCOME_CANCELLED": 1}
        assert not made.engines[0].requests
        await made.until_idle()


async def test_an_answer_that_breaks_off_ends_its_call() -> None:
    async with foreign(breaks_off) as (made, _):
        async with outcomes(made, 1) as ended:
            # The gateway has passed the head on when the engine breaks off, or it has not yet.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 50")
        assert ended.total() == 1
        await made.until_idle()


@pytest.mark.parametrize("mode", [DUPLEX, HEADS, SILENT], ids=["duplex", "heads", "silent"])
async def test_a_call_that_an_engine_answers_is_its_engines_to_report(mode: dict[str, Any]) -> None:
    async with foreign(answer_json, mode=mode) as (made, _):
        async with outcomes(made, 3) as ended:
            for _ in range(3):
                assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 200")
            for request in made.engines[0].requests:
                await made.engines[0].report(request, outcome=types_pb2.OUTCOME_COMPLETED)
        assert ended == {"OUTCOME_COMPLETED": 3}
        await made.until_idle()


# -- streams, failures, health ---------------------------------------------------------------------------------------


@MODES
async def test_a_stream_is_not_delayed(mode: dict[str, Any]) -> None:
    sent = asyncio.Event()

    async def one_by_one(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for index in range(3):
            sent.clear()
            writer.write(b"9\r\ndata: %d\n\n\r\n" % index)
            await writer.drain()
            await sent.wait()
        writer.write(b"0\r\n\r\n")

    async with foreign(one_by_one, mode=mode) as (made, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n" + PROGRAM.encode() + b"\r\n{}"
        )
        async with asyncio.timeout(10):
            # The engine sends an event only after the one before has arrived here.
            for index in range(3):
                assert await reader.readuntil(b"data: %d\n\n" % index)
                sent.set()
            await reader.readuntil(b"0\r\n\r\n")
        writer.close()


@pytest.mark.parametrize(("allow", "status"), [(True, 200), (False, 500)], ids=["fail open", "fail close"])
async def test_the_pools_failure_mode_decides_when_the_picker_is_away(allow: bool, status: int) -> None:
    async with foreign(answer_json, mode=HEADS, allow=allow) as (made, service):
        await service.drain(0)
        assert int((await made.post(headers=PROGRAM)).split(b" ")[1]) == status


async def test_calls_go_on_through_a_drain() -> None:
    async with foreign(begins_and_waits) as (made, service):
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n" + PROGRAM.encode() + b"\r\n{}"
        )
        async with asyncio.timeout(10):
            await reader.readuntil(b"first")
        began = time.monotonic()
        await service.drain(0.5)
        assert time.monotonic() - began >= 0.4, "an open stream is waited for"
        assert made.plane.table.open_calls == 1, "the picker's end is not the call's"
        writer.close()


async def test_health_checks_follow_the_protocol() -> None:
    async with (
        foreign(answer_json) as (_, service),
        grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> int:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status

        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", LIVENESS, READINESS, SERVICE):
            assert await status(name) == serving
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await status("other")
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        service.leaving = True
        assert await status(LIVENESS) == serving
        assert await status(READINESS) == not_serving
        assert await status(SERVICE) == not_serving


async def test_bytes_that_are_no_message_are_refused_and_fill_no_log(capfd: pytest.CaptureFixture[str]) -> None:
    async with (
        foreign(answer_json) as (made, service),
        grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel,
    ):
        stream = channel.stream_stream(f"/{SERVICE}/Process")(iter([b"\xff\xff"]))
        assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff")
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 200"), "others are served"
    written = capfd.readouterr()
    assert "Traceback" not in written.out + written.err
