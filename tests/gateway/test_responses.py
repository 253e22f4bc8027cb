"""OpenAI's Responses API: what belongs to a stored response reaches the engine that has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from agentserving_gateway.engines import Engine
from agentserving_gateway.responses import Responses
from gateway.gateway_rig import Rig, rig, value

pytestmark = pytest.mark.asyncio(loop_scope="module")


def no_ticket(_: Engine) -> str:
    """Of a gateway without keys."""
    return ""


class Stores:
    """An engine with vLLM's part of the API: it makes up ids, and knows its own only. Wants a key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stored: set[str] = set()

    async def __call__(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path = request.split(b" ")[:2]
        status, document = self._answer(method.decode(), path.decode().partition("?")[0], request)
        body = json.dumps(document).encode()
        writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()

    def _answer(self, method: str, path: str, request: bytes) -> tuple[int, Any]:
        if value(request, "authorization") != "Bearer key":
            return 401, {}
        if path == "/v1/responses":
            previous = json.loads(request.partition(b"\r\n\r\n")[2]).get("previous_response_id")
            if previous is not None and previous not in self.stored:
                return 404, {}
            self.stored.add(f"resp_{self.name}{len(self.stored)}")
            return 200, {"id": f"resp_{self.name}{len(self.stored) - 1}"}
        found = path.split("/")[3]
        if found not in self.stored:
            return 404, {}
        if method == "DELETE":
            self.stored.discard(found)
        return 200, {"id": found, "by": self.name, "cancelled": path.endswith("/cancel")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made() -> AsyncIterator[Rig]:
    async with rig(*(Stores(name) for name in "abc")) as made:
        yield made


KEY = "authorization: Bearer key\r\n"


async def create(made: Rig, headers: str = "", **fields: object) -> tuple[int, str, str]:
    """(status, id of the response, engine)."""
    answer = await made.post("/v1/responses", json.dumps(fields).encode(), KEY + headers)
    found = json.loads(answer.partition(b"\r\n\r\n")[2])
    return int(answer.split(b" ")[1]), found.get("id", ""), value(answer, "x-agentserving-engine")


async def ask(made: Rig, method: str, path: str) -> tuple[int, Any]:
    length = "content-length: 0\r\n" if method == "POST" else ""
    answer = await made.send(f"{method} /v1/responses/{path} HTTP/1.1\r\nhost: x\r\n{KEY}{length}\r\n".encode())
    return int(answer.split(b" ")[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_the_next_turn_reaches_the_engine_that_has_the_previous_response_whatever_its_program(made: Rig) -> None:
    for first in range(6):
        status, previous, engine = await create(made, f"x-agentserving-program-id: p{first}\r\n")
        assert status == 200
        for turn in range(3):
            program = f"x-agentserving-program-id: q{first}-{turn}\r\n"
            status, previous, served = await create(made, program, previous_response_id=previous)
            assert (status, served) == (200, engine)


async def test_get_cancel_and_delete_reach_the_engine_that_has_the_response(made: Rig) -> None:
    for program in range(6):
        _, response, _ = await create(made, f"x-agentserving-program-id: r{program}\r\n")
        assert (await ask(made, "GET", response))[0] == 200
        assert (await ask(made, "GET", f"{response}?stream=false"))[0] == 200
        status, document = await ask(made, "POST", f"{response}/cancel")
        assert status == 200
        assert document["cancelled"]
        assert (await ask(made, "DELETE", response))[0] == 200
        assert (await ask(made, "GET", response))[0] == 404


async def test_an_unknown_response_is_refused_by_an_engine_in_its_own_words(made: Rig) -> None:
    assert (await create(made, previous_response_id="resp_unknown"))[0] == 404
    assert (await create(made, previous_response_id="../../v1/models"))[0] == 404
    assert (await ask(made, "GET", "resp_unknown")) == (404, {})


async def test_another_picker_finds_the_engine_as_well(made: Rig) -> None:
    _, response, engine = await create(made)
    fresh = Responses()
    try:
        assert await fresh.engine_of(response, made.admission.known_engines, "", no_ticket) is None, (
            "engines refuse strangers"
        )
        found = await fresh.engine_of(response, made.admission.known_engines, "Bearer key", no_ticket)
        assert found is not None
        assert found.engine_id == engine
    finally:
        await fresh.close()


async def test_an_id_that_names_its_engine_is_followed_without_asking(made: Rig) -> None:
    for engine in made.engines:
        response = f"resp_{engine.name}_{'0' * 32}"
        engine.script.stored.add(response)  # type: ignore[attr-defined]
        for each in made.engines:
            each.requests.clear()
        assert (await ask(made, "GET", response))[1]["by"] == engine.script.name  # type: ignore[attr-defined]
        status, _, served = await create(made, previous_response_id=response)
        assert (status, served) == (200, engine.name)
        assert {each.name: len(each.requests) for each in made.engines if each.requests} == {engine.name: 2}


async def test_an_id_that_names_an_unknown_engine_is_asked_for(made: Rig) -> None:
    response = f"resp_elsewhere_{'0' * 32}"
    made.engines[2].script.stored.add(response)  # type: ignore[attr-defined]
    assert (await ask(made, "GET", response))[0] == 200


async def test_an_engine_that_hangs_does_not_hide_the_one_that_has_the_response(made: Rig) -> None:
    async def hangs(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    _, response, engine = await create(made)
    hung = next(each for each in made.engines if each.name != engine)
    script, hung.script = hung.script, hangs
    fresh = Responses()
    try:
        async with asyncio.timeout(1.5):
            found = await fresh.engine_of(response, made.admission.known_engines, "Bearer key", no_ticket)
        assert found is not None
        assert found.engine_id == engine
    finally:
        hung.script = script
        await fresh.close()
