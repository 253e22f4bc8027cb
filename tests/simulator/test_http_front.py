"""The simulated engine's HTTP answers: a call that waits, one that is cut, one that is refused."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from agentserving_engine.http.answer import COMMENT
from agentserving_simulator.http_front import Conduct
from support.eventually import eventually_async
from support.simulated_engine import Served, simulated

CHAT = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}
KEEP_ALIVE_S = 0.05


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Served, aiohttp.ClientSession]]:
    """Makes no steps until `run` is called, so its calls wait."""
    async with (
        simulated(Conduct(keep_alive_s=KEEP_ALIVE_S), runs=False) as served,
        aiohttp.ClientSession(served.url, timeout=aiohttp.ClientTimeout(30)) as session,
    ):
        yield served, session


async def until(response: aiohttp.ClientResponse, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        part = await response.content.readany()
        assert part, f"{wanted!r} never came: {seen!r}"
        seen += part
    return seen


async def test_a_waiting_stream_gets_comments_and_then_its_tokens() -> None:
    async with (
        serving() as (served, session),
        session.post("/v1/chat/completions", json={**CHAT, "stream": True}) as got,
    ):
        assert got.content_type == "text/event-stream"
        seen = await until(got, COMMENT * 2)
        served.run()
        seen += await got.read()
        events = seen.replace(COMMENT, b"").split(b"\n\n")
        assert events[-2:] == [b"data: [DONE]", b""]
        finish = [json.loads(event[6:])["choices"][0]["finish_reason"] for event in events[:-2]]
        assert finish == [None, None, None, "length"]


async def test_a_stream_that_the_engine_cannot_finish_ends_with_an_error_event() -> None:
    body = {"model": "tiny", "prompt": "hi", "stream": True}
    async with serving() as (served, session), session.post("/v1/completions", json=body) as got:
        await until(got, COMMENT)
        (request,) = served.engine.requests.values()
        assert request.outputs is not None
        request.outputs.put_nowait(None)  # type: ignore[arg-type]
        error, done, rest = (await got.read()).replace(COMMENT, b"").split(b"\n\n")
        assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "server_error"
        assert (done, rest) == (b"data: [DONE]", b"")


async def test_a_client_that_leaves_takes_its_call_with_it() -> None:
    async with serving() as (served, session):
        got = await session.post("/v1/chat/completions", json={**CHAT, "stream": True})
        await until(got, COMMENT)
        assert served.engine.requests
        got.close()
        await eventually_async(lambda: not served.engine.requests, "the call has left the engine")


@pytest.mark.parametrize("field", [{"session_id": "forged"}, {"vllm_xargs": {"session_id": "forged"}}])
async def test_a_body_that_names_a_session_is_refused_as_the_engine_would(field: dict[str, object]) -> None:
    async with serving() as (served, session):
        async with session.post("/v1/chat/completions", json={**CHAT, **field}) as got:
            assert got.status == 400
            error = (await got.json())["error"]
        assert error["code"] == "reserved_field"
        assert not served.engine.requests


async def test_a_whole_answer_and_an_error_are_as_before() -> None:
    async with serving() as (served, session):
        served.run()
        async with session.post("/v1/chat/completions", json=CHAT) as got:
            assert (got.status, got.content_type) == (200, "application/json")
            assert (await got.json())["usage"]["completion_tokens"] == 3
        async with session.post("/v1/chat/completions", data=b"not json") as got:
            assert got.status == 400
            assert "the body is not JSON" in (await got.json())["error"]["message"]
        async with session.get("/v1/nothing") as got:
            assert (got.status, (await got.json())["error"]["code"]) == (404, 404)


async def test_bodies_are_limited_by_the_front_and_not_by_the_engine() -> None:
    async with serving() as (_, session):
        body = io.BytesIO(b'{"model": "nobody", "prompt": "' + b"x" * (65 << 20) + b'"}')
        async with session.post("/v1/completions", data=body) as got:
            assert got.status == 404


async def test_a_huge_body_does_not_hold_the_engines_loop() -> None:
    """31 MiB took 2.1 s of the loop when they were parsed on it and tokenized as a whole."""
    text = "word " * (6 << 20)
    bodies = {
        "/v1/chat/completions": ({**CHAT, "messages": [{"role": "user", "content": text}]}, 400),
        "/v1/completions": ({"model": "tiny", "prompt": [text]}, 400),
        "/v1/embeddings": ({"model": "tiny", "input": ["word " * 20_000] * 20}, 200),
        "/v1/messages/count_tokens": ({"model": "tiny", "messages": [{"role": "user", "content": text}]}, 400),
    }
    async with serving() as (served, session):
        served.run()
        for path, (document, status) in bodies.items():
            body = io.BytesIO(json.dumps(document).encode())
            begins, longest = time.thread_time(), 0.0
            posted = asyncio.create_task(status_of(session, path, body))
            while not posted.done():
                await asyncio.sleep(0)
                ends = time.thread_time()
                begins, longest = ends, max(longest, ends - begins)
            assert await posted == status
            # Of the loop's own CPU time; the client's part is in it.
            assert longest < 0.5, path


async def status_of(session: aiohttp.ClientSession, path: str, body: io.BytesIO) -> int:
    async with session.post(path, data=body) as got:
        await got.read()
        return got.status
