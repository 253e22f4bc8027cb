"""The header that asks for a class of service: what it becomes, and how it is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from agentserving.contract.service_class import SERVICE_CLASSES, ServiceClass
from agentserving.contract.ticket import verify
from agentserving_controlplane.policy.tenants import TenantRow
from gateway.gateway_rig import KEYS, Rig, answer_json, rig, until, value
from gateway.played_keys import PlayedKeys

pytestmark = pytest.mark.asyncio(loop_scope="module")
INTERACTIVE, STANDARD, BATCH = SERVICE_CLASSES


class Doors:
    """A gateway for clients with keys."""

    def __init__(self, made: Rig, keys: PlayedKeys) -> None:
        self.made, self.keys = made, keys

    async def key(self, tenant: str, **chosen: Any) -> str:
        """The header of a new key that the gateway knows."""
        text = self.keys.make(tenant, **chosen)
        watch = self.made.picker.keys
        assert watch is not None
        await until(lambda: (known := watch.current()) is not None and known.get(text[3:11]) is not None)
        return f"authorization: Bearer {text}\r\n"

    async def ask(self, headers: str, path: str = "/v1/completions") -> tuple[int, Any]:
        """The status, and the class that the engine was told in its ticket; or the body of a refusal."""
        engine = self.made.engines[0]
        before = len(engine.requests)
        answer = await self.made.post(headers=headers, path=path)
        status = int(answer.split(b" ")[1])
        if status != 200:
            assert len(engine.requests) == before, "a refused call reaches no engine"
            return status, json.loads(answer.partition(b"\r\n\r\n")[2])
        ticket = verify(value(engine.requests[-1], "x-session-id"), KEYS, engine_id="e0", now_unix_s=0).ticket
        return status, ServiceClass(ticket.service_class)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors() -> AsyncIterator[Doors]:
    keys = PlayedKeys()
    async with rig(answer_json, keys=keys) as made:
        await until(lambda: made.picker.authenticator.is_ready)
        yield Doors(made, keys)


def program(name: str) -> str:
    return f"x-agentserving-program-id: {name}\r\n"


def asks(word: str) -> str:
    return f"x-agentserving-service: {word}\r\n"


async def test_the_header_decides_the_class_of_the_program_that_the_call_opens(doors: Doors) -> None:
    key = await doors.key("acme")
    for word, wanted in (("batch", BATCH), ("Interactive", INTERACTIVE), ("standard", STANDARD)):
        assert await doors.ask(key + program(f"of-{word}") + asks(word)) == (200, wanted)
    assert await doors.ask(key + program("silent")) == (200, STANDARD)
    # A call that names no program: its body is read, and the header counts as well.
    assert await doors.ask(key + asks("batch")) == (200, BATCH)
    assert await doors.ask(key + program("of-batch")) == (200, BATCH), "the program keeps its class"


async def test_a_word_that_means_nothing_is_refused_with_the_words_there_are(doors: Doors) -> None:
    key = await doors.key("acme")
    status, body = await doors.ask(key + program("p") + asks("bulk"))
    assert (status, body["error"]["code"]) == (400, "bad_service_class")
    assert "use interactive, standard or batch" in body["error"]["message"]


async def test_a_key_gives_its_class_and_permits_nothing_better(doors: Doors) -> None:
    key = await doors.key("acme", service_class=BATCH)
    assert await doors.ask(key + program("nightly")) == (200, BATCH)
    for path, kind in (("/v1/completions", "permission_error"), ("/v1/messages", "permission_error")):
        status, body = await doors.ask(key + program("p") + asks("interactive"), path)
        assert (status, body["error"]["type"]) == (403, kind)
        assert "at best batch" in body["error"]["message"]
        assert "agentserving key create --service-class" in body["error"]["message"]
        assert (body.get("type") == "error") == (path == "/v1/messages"), "in the dialect of the client"


async def test_a_tenants_class_bounds_all_of_its_keys(doors: Doors) -> None:
    doors.made.plane.tenants.put(TenantRow(tenant="globex", service_class=STANDARD))  # type: ignore[arg-type]
    key = await doors.key("globex", service_class=INTERACTIVE)
    assert await doors.ask(key + program("chat")) == (200, STANDARD)
    assert (await doors.ask(key + program("other") + asks("interactive")))[0] == 403
