"""Client and AsyncClient against a cluster: operations, pages, watches, generated answers, and errors."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

import agentserving
import grpc
import pytest
from agentserving import AsyncClient, Client, Outcome, ProgramState, Settings
from agentserving.contract.policy import PRESETS, preset
from integration.local_cluster import Cluster
from support.eventually import DEADLINE_S

pytestmark = pytest.mark.timeout(180)
PATH = "/v1/chat/completions"


def body(tokens: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "x"}]
    return {"model": "tiny", "messages": messages, "max_tokens": tokens, "ignore_eos": True, **more}


def fresh(name: str = "p") -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


class Blocking:
    """A Client behind the face of an AsyncClient, so that one test speaks of both."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call


@pytest.fixture(params=["sync", "async"])
async def client(request: pytest.FixtureRequest, cluster: Cluster) -> Any:
    if request.param == "sync":
        with Client() as blocking:
            yield Blocking(blocking)
    else:
        async with AsyncClient() as client:
            yield client


async def test_a_program_lives_from_open_to_close(client: Any) -> None:
    program_id = fresh()
    opened = await client.open_program("triage", program_id=program_id)
    assert (opened.program_id, opened.name, opened.state) == (program_id, "triage", ProgramState.ACTIVE)
    assert opened.open_time is not None
    assert opened.close_time is None
    await client.begin_tool_wait(program_id, tool="search", expected_s=1)
    assert (await client.get_program(program_id)).state is ProgramState.TOOL_WAIT
    await client.end_tool_wait(program_id)
    assert (await client.pause_program(program_id)).state is ProgramState.PAUSED
    assert (await client.resume_program(program_id)).state is ProgramState.ACTIVE
    closed = await client.close_program(program_id, outcome=Outcome.FAILED)
    assert (closed.state, closed.outcome) == (ProgramState.CLOSED, Outcome.FAILED)


@pytest.mark.parametrize(
    ("operation", "arguments", "kind", "reason", "field"),
    [
        ("get_program", ("unknown",), agentserving.NotFoundError, "PROGRAM_NOT_FOUND", ""),
        ("open_program", ("x" * 200,), agentserving.InvalidArgumentError, "NAME_TOO_LONG", "name"),
        ("set_policy", ("no-such",), agentserving.InvalidArgumentError, "BAD_POLICY", "policy.name"),
        ("drain_engine", ("unknown",), agentserving.NotFoundError, "", ""),
    ],
)
async def test_a_refusal_says_what_and_where(
    client: Any, operation: str, arguments: tuple[str, ...], kind: type[Exception], reason: str, field: str
) -> None:
    with pytest.raises(kind) as caught:
        await getattr(client, operation)(*arguments)
    error = caught.value
    assert isinstance(error, agentserving.AgentServingError)
    assert isinstance(error.__cause__, grpc.RpcError)
    assert not reason or error.reason == reason
    assert not field or error.field == field


async def test_a_closed_program_and_a_taken_id_are_conflicts(client: Any) -> None:
    program_id = fresh()
    await client.open_program(program_id=program_id)
    with pytest.raises(agentserving.AlreadyExistsError) as taken:
        await client.open_program(program_id=program_id)
    assert isinstance(taken.value, agentserving.ConflictError)
    await client.close_program(program_id)
    with pytest.raises(agentserving.ConflictError) as closed:
        await client.admit(program_id)
    assert closed.value.reason == "PROGRAM_CLOSED"


async def test_the_policy_is_a_value_both_ways(client: Any) -> None:
    for name in ("plas", "atlas"):
        version = await client.set_policy(preset(name))
        assert version.policy == PRESETS[name]
    found = await client.get_policy()
    assert (found.version, found.policy) == (version.version, PRESETS["atlas"])
    assert sorted(found.acknowledged_engine_ids + found.pending_engine_ids) == ["engine-0", "engine-1"]
    with pytest.raises(agentserving.ConflictError):
        await client.set_policy("plas", expected_version=found.version - 1)


async def test_engines_and_overview_are_read_whole(client: Any) -> None:
    engines = {engine.engine_id: engine for engine in await client.list_engines()}
    assert sorted(engines) == ["engine-0", "engine-1"]
    assert engines["engine-0"].state is agentserving.EngineState.READY
    assert engines["engine-0"].capabilities.engine_kind == "SIMULATOR"
    assert engines["engine-0"].capabilities.max_num_seqs == 8
    assert engines["engine-0"].last_report_time is not None
    overview = await client.get_overview()
    assert overview.store_healthy
    assert [engine.engine_id for engine in overview.engines] == list(engines)


def test_pages_are_hidden(cluster: Cluster) -> None:
    with Client() as client:
        made = sorted(client.open_program(program_id=fresh("page")).program_id for _ in range(5))
        found = [p.program_id for p in client.list_programs(page_size=2) if p.program_id.startswith("page-")]
        assert found == made
        for program_id in made:
            client.close_program(program_id)
        closed = client.list_programs(states=[ProgramState.CLOSED], page_size=2)
        assert [p.program_id for p in closed if p.program_id.startswith("page-")] == made
        assert not [p for p in client.list_programs() if p.program_id.startswith("page-")]


async def test_an_async_client_hides_pages_too(cluster: Cluster) -> None:
    async with AsyncClient() as client:
        made = sorted([(await client.open_program(program_id=fresh("apage"))).program_id for _ in range(3)])
        found = [p.program_id async for p in client.list_programs(page_size=1) if p.program_id.startswith("apage-")]
        assert found == made


# -- generated answers ---------------------------------------------------------------------------------------------


async def test_an_answer_comes_whole_through_the_sidecar_and_is_the_programs(cluster: Cluster) -> None:
    async with AsyncClient() as client, agentserving.program("direct") as p:
        async with await client.generate(PATH, body(5)) as answer:
            assert (answer.http_status, answer.content_type) == (200, "application/json")
            assert json.loads(await answer.read())["usage"]["completion_tokens"] == 5
        async with await client.generate(PATH, body(400, stream=True)) as answer:
            chunks = [chunk async for chunk in answer]
            assert b"".join(chunks).count(b"data: ") == 402
            assert p.headers()["x-agentserving-parent-call-ids"] == answer.call_id
        while (found := await client.get_program(p.program_id)).calls_completed < 2:
            await asyncio.sleep(0.02)
    assert found.output_tokens == 405
    assert [thread.thread_id for thread in found.threads] == ["main"]


def test_a_blocking_answer_is_the_same(cluster: Cluster) -> None:
    with Client() as client, agentserving.program() as p:
        with client.generate(PATH, json.dumps(body(5)).encode()) as answer:
            assert json.loads(answer.read())["usage"]["completion_tokens"] == 5
        first = p.headers()["x-agentserving-parent-call-ids"]
        with client.generate(PATH, body(-1)) as answer:
            assert answer.http_status == 400
        # A refused call is nothing to come after.
        assert first
        assert p.headers()["x-agentserving-parent-call-ids"] == first


@pytest.mark.parametrize("is_async", [False, True])
async def test_leaving_an_answer_aborts_the_call(cluster: Cluster, is_async: bool) -> None:
    program_id = fresh()
    async with AsyncClient() as client:
        if is_async:
            async with await client.generate(PATH, body(8000, stream=True), program_id=program_id) as answer:
                async for _ in answer:
                    break
        else:
            with (
                Client() as blocking,
                blocking.generate(PATH, body(8000, stream=True), program_id=program_id) as generation,
            ):
                next(iter(generation))
        async with asyncio.timeout(DEADLINE_S):
            while (await client.get_program(program_id)).calls:
                await asyncio.sleep(0.02)
        assert (await client.get_program(program_id)).output_tokens < 8000


async def test_a_task_that_is_cancelled_aborts_its_call(cluster: Cluster) -> None:
    program_id = fresh()

    async def read() -> None:
        async with AsyncClient() as own, await own.generate(PATH, body(8000), program_id=program_id) as answer:
            await answer.read()

    async with AsyncClient() as client, asyncio.timeout(DEADLINE_S):
        task = asyncio.create_task(read())
        while True:
            try:
                if any(call.running for call in (await client.get_program(program_id)).calls):
                    break
            except agentserving.NotFoundError:
                pass
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while (found := await client.get_program(program_id)).calls:
            await asyncio.sleep(0.02)
    assert found.output_tokens < 8000


async def test_a_cancelled_program_ends_the_answers_of_its_calls(cluster: Cluster) -> None:
    program_id = fresh()
    async with AsyncClient() as client:
        answer = await client.generate(PATH, body(8000, stream=True), program_id=program_id)
        reading = asyncio.create_task(answer.read())
        assert await client.cancel_program(program_id) == 1
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(reading, return_exceptions=True)
        assert (await client.get_program(program_id)).outcome is Outcome.CANCELLED


def test_a_path_that_is_none_of_the_engines_is_refused_here(cluster: Cluster) -> None:
    with Client() as client, pytest.raises(agentserving.InvalidArgumentError) as caught:
        client.generate("/metrics", {})
    assert caught.value.field == "path"


# -- no server -----------------------------------------------------------------------------------------------------


async def test_without_a_server_operations_are_unavailable_within_the_deadline() -> None:
    settings = Settings(deadline_s=1.0)
    async with AsyncClient("127.0.0.1:9", settings=settings) as client:
        with pytest.raises(agentserving.UnavailableError, match=r"127\.0\.0\.1:9"):
            async with asyncio.timeout(DEADLINE_S):
                await client.get_overview()
    refused = pytest.raises(agentserving.UnavailableError, match=r"127\.0\.0\.1:9")
    with Client("127.0.0.1:9", settings=settings) as blocking, refused:
        blocking.get_overview()


def test_no_address_at_all_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTSERVING_CONTROL_PLANE", raising=False)
    with pytest.raises(agentserving.InvalidArgumentError, match="AGENTSERVING_CONTROL_PLANE"):
        Client()


def test_a_client_may_be_used_by_many_os_threads(cluster: Cluster) -> None:
    found: list[int] = []
    with Client() as client:
        workers = [threading.Thread(target=lambda: found.append(client.get_overview().epoch)) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(20)
    assert len(found) == 8
