"""Routes other than calls: which engine answers, what a hung one costs, and the model list of all engines."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from agentserving.v1 import types_pb2
from agentserving_gateway import model_lists
from agentserving_gateway.envoy import route_table
from agentserving_gateway.routes import ROUTES
from gateway.gateway_rig import Rig, Script, answer_json, rig, until, value
from gateway.test_every_call_ends_once import hangs_up, never_answers, refuses
from gateway.test_hostile import send_all
from support.eventually import DEADLINE_S

EMBEDDINGS = ("/v1/embeddings", b'{"model":"m","input":"x"}')
COUNT = ("/v1/messages/count_tokens", b'{"model":"m","messages":[]}')


async def get(made: Rig, path: str = "/v1/models") -> tuple[int, Any]:
    answer = await made.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return int(answer.split(b" ")[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


def lists(*models: str, chunked: bool = False) -> Script:
    async def script(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = json.dumps({"object": "list", "data": [{"id": model, "object": "model"} for model in models]}).encode()
        if chunked:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        return True

    return script


@pytest.mark.parametrize(("path", "body"), [EMBEDDINGS, COUNT])
async def test_engines_take_turns(path: str, body: bytes) -> None:
    async with rig(*[answer_json] * 4) as made:
        engines = [value(await made.post(path, body), "x-agentserving-engine") for _ in range(40)]
        assert Counter(engines) == {f"e{index}": 10 for index in range(4)}
        assert made.plane.table.rows == {}


@pytest.mark.parametrize("report", [
    {"stuck": True},
    {"health": types_pb2.ENGINE_HEALTH_DOWN},
    {"health": types_pb2.ENGINE_HEALTH_LOADING},
    {"health": types_pb2.ENGINE_HEALTH_STUCK},
])  # fmt: skip
async def test_an_engine_that_is_not_ready_is_not_asked(report: dict[str, Any]) -> None:
    async with rig(never_answers, lists("m")) as made:
        await made.engines[0].say(**report)
        await until(lambda: len(made.admission.ready_engines()) == 1)
        for _ in range(3):
            for path, body in (EMBEDDINGS, COUNT):
                assert (await made.post(path, body)).startswith(b"HTTP/1.1 200")
            assert (await get(made))[0] == 200
        assert made.engines[0].requests == []


@pytest.mark.parametrize("script", [hangs_up, refuses(500), refuses(503), never_answers])
async def test_another_engine_answers_for_one_that_fails_or_hangs(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = tuple(replace(route, answer_s=0.5) if route.answer_s else route for route in ROUTES)
    monkeypatch.setattr(route_table, "ROUTES", quick)
    async with rig(script, answer_json) as made:
        for _ in range(4):
            assert (await made.post(*EMBEDDINGS)).startswith(b"HTTP/1.1 200")
        assert made.engines[0].requests


async def test_without_a_ready_engine_the_answer_says_when_to_retry() -> None:
    async with rig(answer_json) as made:
        await made.engines[0].say(stuck=True)
        await until(lambda: not made.admission.ready_engines())
        for answer in (await made.post(*EMBEDDINGS), await made.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")):
            assert answer.startswith(b"HTTP/1.1 503")
            assert value(answer, "retry-after") == "1"


async def test_the_model_list_is_that_of_all_ready_engines() -> None:
    async with rig(lists("base"), lists("base", "org/sql", chunked=True), never_answers, hangs_up) as made:
        await made.engines[2].say(stuck=True)
        await until(lambda: len(made.admission.ready_engines()) == 3)
        status, document = await get(made)
        assert status == 200
        assert document["object"] == "list"
        assert [model["id"] for model in document["data"]] == ["base", "org/sql"]
        for path in ("/v1/models/org/sql", "/v1/models/org%2Fsql"):
            assert await get(made, path) == (200, {"id": "org/sql", "object": "model"})
        status, document = await get(made, "/v1/models/unknown")
        assert status == 404
        assert document["error"]["code"] == "model_not_found"


async def test_an_engines_refusal_of_the_model_list_is_passed_on() -> None:
    async with rig(refuses(401)) as made:
        assert (await get(made))[0] == 401


async def test_a_hung_engine_delays_the_model_list_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_lists, "ASK_S", 0.5)
    async with rig(never_answers, lists("m")) as made:
        assert [model["id"] for model in (await get(made))[1]["data"]] == ["m"]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE"])
@pytest.mark.parametrize(
    "framing",
    [b"content-length: 60\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n3c\r\n"],
)
async def test_a_body_where_none_belongs_is_not_the_engines_next_request(method: bytes, framing: bytes) -> None:
    inner = b"POST /v1/load_lora_adapter HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
    async with rig(lists("m")) as made:
        answer = await send_all(made.port, method + b" /v1/models HTTP/1.1\r\nhost: x\r\n" + framing + inner)
        # Chunks are framed anew by Envoy, a length is refused.
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 405")) or b"chunked" in framing
        assert not [request for request in made.engines[0].requests if b"load_lora" in request.partition(b"\r\n")[0]]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_http_1_0_client_gets_no_chunks(stream: bool) -> None:
    async def chunks(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        for part in (head, b"5\r\nhello\r\n", b"6\r\n world\r\n0\r\n\r\n"):
            writer.write(part)
            await writer.drain()

    body = b'{"stream":%s}' % (b"true" if stream else b"false")
    async with rig(chunks) as made:
        head = b"POST /v1/completions HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: %d\r\n\r\n" % len(body)
        answer = await made.send(head + body)
        assert b"chunked" not in answer
        assert answer.partition(b"\r\n\r\n")[2] == b"hello world"


@pytest.mark.xfail(strict=True, reason="Envoy ends a broken answer to HTTP/1.0 with an ordinary close (decision 0109)")
async def test_an_answer_that_breaks_off_never_looks_whole_to_an_http_1_0_client() -> None:
    async def breaks(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()

    async with rig(breaks) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(b"POST /v1/completions HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}")
        try:
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(DEADLINE_S):
                    await reader.read()
        finally:
            writer.close()
