"""When a request is tried on another engine, how often, and what the client learns when none serves it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import types_pb2
from agentserving_gateway import metrics
from gateway.gateway_rig import Rig, answer_json, rig, until, value
from gateway.test_every_call_ends_once import PROGRAM, hangs_up, refuses
from support.eventually import DEADLINE_S


def reached(made: Rig) -> list[str]:
    return [engine.name for engine in made.engines if engine.requests]


async def test_a_request_that_kills_engines_reaches_two_of_them_at_most() -> None:
    async with rig(*[hangs_up] * 5) as made:
        answer = await made.post(headers=PROGRAM)
        assert answer.startswith(b"HTTP/1.1 502")
        assert len(reached(made)) == 2
        await made.until_idle()


async def test_clients_that_obey_retry_after_reach_the_one_engine_that_takes_connections() -> None:
    async with rig(*[answer_json] * 5) as made:
        for engine in made.engines[:4]:
            assert engine.server is not None
            engine.server.close()

        async def client() -> None:
            while not (answer := await made.post()).startswith(b"HTTP/1.1 200"):
                assert answer.startswith(b"HTTP/1.1 503")
                await asyncio.sleep(float(value(answer, "retry-after")))

        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(client() for _ in range(20)))


async def test_an_engine_that_took_no_connection_is_avoided_before_the_leader_knows() -> None:
    async with rig(answer_json, answer_json) as made:
        server = made.engines[0].server
        assert server is not None
        server.close()
        retries = metrics.RETRIES._value.get()
        for _ in range(6):
            assert (await made.post()).startswith(b"HTTP/1.1 200")
        assert metrics.RETRIES._value.get() == retries + 1, "only the first call met it"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_server_error_is_tried_once_elsewhere(status: int) -> None:
    async with rig(refuses(status), answer_json) as made:
        answers = [await made.post(headers=f"x-agentserving-program-id: p{index}\r\n") for index in range(6)]
        assert Counter(answer.split(b" ")[1] for answer in answers) == {b"200": 6}
        assert made.engines[0].requests


async def test_the_engines_own_error_is_passed_on_when_no_other_engine_serves() -> None:
    async with rig(refuses(503)) as made:
        answer = await made.post(headers=PROGRAM)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"\r\n\r\n{}")
        assert value(answer, "x-agentserving-engine") == "e0"
    async with rig(*[refuses(500)] * 4) as made:
        assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 500 ")
        assert len(reached(made)) == 2
        await made.until_idle()


@pytest.mark.parametrize("status", [400, 404, 429, 501])
async def test_what_another_engine_would_answer_alike_is_not_tried_again(status: int) -> None:
    async with rig(refuses(status), refuses(status)) as made:
        assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 %d " % status)
        assert len(reached(made)) == 1


async def test_a_large_server_error_is_held_back_and_passed_on_whole() -> None:
    body = b"x" * 3_000_000

    async def fails_at_length(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 500 No\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        return True

    async with rig(fails_at_length) as made:
        assert (await made.post(headers=PROGRAM)).endswith(b"\r\n\r\n" + body)


async def test_a_call_for_an_adapter_goes_to_the_engine_that_serves_it() -> None:
    async with rig(refuses(404), answer_json, models=[["base"], ["base", "sql"]]) as made:
        for _ in range(6):
            assert (await made.post(body=b'{"messages":[],"model":"sql"}')).startswith(b"HTTP/1.1 200")
        answer = await made.post(body=b'{"model":"unknown"}')
        assert answer.startswith(b"HTTP/1.1 404")
        assert b'"model_not_found"' in answer
        assert b'"param": "model"' in answer
        assert made.engines[0].requests == []


async def test_a_cancelled_program_is_refused_with_its_reason() -> None:
    async with rig(answer_json) as made:
        assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 200")
        await made.programs.CancelProgram(pb.CancelProgramRequest(program_id="p"), timeout=5)
        for path in ("/v1/completions", "/v1/messages"):
            answer = await made.post(path, headers=PROGRAM)
            assert answer.startswith(b"HTTP/1.1 403 Forbidden")
            assert b"program_cancelled" in answer or b"permission_error" in answer
        await made.programs.OpenProgram(pb.OpenProgramRequest(program_id="p"), timeout=5)
        assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 200")


async def test_an_engine_that_is_down_gets_no_calls_and_without_another_the_answer_says_when_to_retry() -> None:
    async with rig(answer_json, answer_json) as made:
        await made.engines[0].say(health=types_pb2.ENGINE_HEALTH_DOWN, health_reason="the process has ended")
        await until(lambda: len(made.admission.ready_engines()) == 1)
        for _ in range(4):
            assert value(await made.post(), "x-agentserving-engine") == "e1"
        await made.engines[1].say(health=types_pb2.ENGINE_HEALTH_LOADING, health_reason="loading the model")
        await until(lambda: not made.admission.ready_engines())
        await until(lambda: made.admission._settled)
        answer = await made.post()
        assert answer.startswith(b"HTTP/1.1 503")
        assert value(answer, "retry-after")
