"""Unmodified SDKs and frameworks, the real packages: whose calls they make, and what those come after."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import os
import subprocess
import sys
from typing import Annotated, Any, TypedDict

import agents
import agentserving
import anthropic
import openai
import pytest
from agentserving import Client, Outcome, Program, ProgramState
from gateway.gateway_rig import rig
from integration.local_cluster import Cluster
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from proto.client.http_origin import origin

pytestmark = pytest.mark.timeout(180)
MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]


def row(cluster: Cluster, program_id: str, calls: int) -> Program:
    """The program once so many of its calls have been counted."""
    with Client(cluster.addresses["control_plane"]) as client:
        cluster.wait(lambda: client.get_program(program_id).calls_completed >= calls, 20)
        return client.get_program(program_id)


def threads(program: Program) -> dict[str, int]:
    return {thread.thread_id: thread.calls for thread in program.threads}


# -- OpenAI --------------------------------------------------------------------------------------------------------


def test_the_sync_sdk_carries_the_program_streamed_and_not(cluster: Cluster) -> None:
    with openai.OpenAI(max_retries=0) as sdk, agentserving.program("sync") as p:
        sdk.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3)
        assert list(sdk.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3, stream=True))
        with p.tool_wait("search", expected_s=1.5), Client() as client:
            assert client.get_program(p.program_id).state is ProgramState.TOOL_WAIT
        sdk.completions.create(model="tiny", prompt="x", max_tokens=3)
    found = row(cluster, p.program_id, 3)
    assert (found.name, found.state, found.outcome) == ("sync", ProgramState.CLOSED, Outcome.COMPLETED)
    assert threads(found) == {"main": 3}


async def test_map_reduce_reaches_the_process_table(cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(max_retries=0) as sdk, agentserving.program("map-reduce") as p:

        async def call(tokens: int = 3) -> None:
            await sdk.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=tokens)

        await asyncio.gather(*(call() for _ in range(4)))
        reduce = asyncio.create_task(call(4000))
        async with agentserving.AsyncClient() as client:
            running: list[agentserving.Call] = []
            while not running:
                calls = (await client.get_program(p.program_id)).calls
                running = [call for call in calls if call.parent_call_ids]
                await asyncio.sleep(0.02)
            reduce.cancel()
            await asyncio.gather(reduce, return_exceptions=True)
    assert len(set(running[0].parent_call_ids)) == 4
    assert running[0].call_id not in running[0].parent_call_ids


async def test_a_body_that_raises_is_a_failed_program_and_its_child_too(cluster: Cluster) -> None:
    outer = agentserving.program("outer")
    inner = agentserving.program("inner", parent=outer)

    async def run() -> None:
        async with openai.AsyncOpenAI(max_retries=0) as sdk, outer, inner:
            await sdk.chat.completions.create(model="nothing", messages=MESSAGES)

    with pytest.raises(openai.NotFoundError):
        await run()
    async with agentserving.AsyncClient() as client:
        programs = [await client.get_program(p.program_id) for p in (outer, inner)]
    assert [p.outcome for p in programs] == [Outcome.FAILED, Outcome.FAILED]
    assert programs[1].parent_program_id == programs[1].root_program_id == outer.program_id


async def test_no_parent_and_no_depth_makes_a_call_fail(cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(max_retries=0) as sdk, contextlib.AsyncExitStack() as stack:
        innermost = await stack.enter_async_context(agentserving.program(parent="never-opened"))
        for _ in range(20):
            innermost = await stack.enter_async_context(agentserving.program())
        await sdk.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3)
    found = await asyncio.to_thread(row, cluster, innermost.program_id, 1)
    assert (found.parent_program_id, found.outcome) == (innermost.parent_program_id, Outcome.COMPLETED)


async def test_headers_alone_do_the_same_without_a_control_plane_to_tell(cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(max_retries=0) as sdk:
        with agentserving.program("outer", control_plane="") as outer, agentserving.program("inner") as inner:
            with agentserving.program(control_plane="") as innermost, innermost.tool_wait("search"):
                await sdk.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3)
    found = await asyncio.to_thread(row, cluster, innermost.program_id, 1)
    # What only a header has named ends with the program above it.
    assert (found.parent_program_id, found.state) == (inner.program_id, ProgramState.CLOSED)
    assert outer.program_id == inner.parent_program_id


def test_one_client_is_enough_without_patching_anything(cluster: Cluster) -> None:
    agentserving.uninstrument()
    http_client = agentserving.attach(openai.DefaultHttpxClient())
    with openai.OpenAI(http_client=http_client) as sdk, openai.OpenAI() as other, agentserving.program() as p:
        for each in (sdk, other):
            each.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3)
    assert threads(row(cluster, p.program_id, 1)) == {"main": 1}


def test_two_environment_variables_alone_name_the_program(cluster: Cluster) -> None:
    agent = (
        "import openai\n"
        "with openai.OpenAI() as sdk:\n"
        "    sdk.chat.completions.create(model='tiny', messages=[{'role': 'user', 'content': 'x'}], max_tokens=3)\n"
    )
    headers = "x-agentserving-program-id: from-the-environment\nx-agentserving-program-name: unmodified"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AGENTSERVING_")}
    subprocess.run(
        [sys.executable, "-c", agent], check=True, timeout=60, env={**environment, "OPENAI_CUSTOM_HEADERS": headers}
    )
    assert row(cluster, "from-the-environment", 1).name == "unmodified"


# -- LangChain and LangGraph ---------------------------------------------------------------------------------------


class State(TypedDict):
    said: Annotated[list[str], operator.add]


def graph(model: ChatOpenAI, *, is_async: bool) -> Any:
    """plan -> (left, right) -> merge"""

    def node(name: str) -> Any:
        def run(state: State) -> State:
            return {"said": [str(model.invoke(name).content)]}

        async def arun(state: State) -> State:
            return {"said": [str((await model.ainvoke(name)).content)]}

        return arun if is_async else run

    made = StateGraph(State)
    for name in ("plan", "left", "right", "merge"):
        made.add_node(name, node(name))
    made.add_edge(START, "plan")
    for name in ("left", "right"):
        made.add_edge("plan", name)
        made.add_edge(name, "merge")
    made.add_edge("merge", END)
    return made.compile()


class Sent:
    """The parents that each call of a program named, with calls numbered from 0 in the order of their admission."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._parents: dict[int, list[int]] = {}
        answered = agentserving.programs.context.CarriedCall.answered

        def noted(call: Any, call_id: str) -> None:
            self._parents[number(call_id)] = [number(parent) for parent in call.parents]
            answered(call, call_id)

        monkeypatch.setattr(agentserving.programs.context.CarriedCall, "answered", noted)

    @property
    def parents(self) -> dict[int, list[int]]:
        place = {call: place for place, call in enumerate(sorted(self._parents))}
        return {place[call]: sorted(place[parent] for parent in after) for call, after in self._parents.items()}


def number(call_id: str) -> int:
    """The last part of a call id, which counts the calls of the whole control plane."""
    return int(call_id.rpartition(".")[2])


@pytest.mark.parametrize("is_async", [False, True])
async def test_langgraph_nodes_come_after_the_step_before(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    sent = Sent(monkeypatch)
    made = graph(ChatOpenAI(model="tiny", max_tokens=60), is_async=is_async)
    async with agentserving.program("graph") as p:
        if is_async:
            await made.ainvoke({"said": []})
        else:
            made.invoke({"said": []})
    row(cluster, p.program_id, 4)
    assert sent.parents == {0: [], 1: [0], 2: [0], 3: [1, 2]}


def test_a_langchain_chain_is_one_thread_and_its_parallel_parts_are_not(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent(monkeypatch)
    model = ChatOpenAI(model="tiny", max_tokens=60)
    content = RunnableLambda(lambda message: message.content)
    chain = model | content | RunnableParallel(a=model | content, b=model | content) | RunnableLambda(str) | model
    with agentserving.program("chain") as p:
        chain.invoke("hello")
    row(cluster, p.program_id, 4)
    assert sent.parents == {0: [], 1: [0], 2: [0], 3: [1, 2]}


# -- OpenAI Agents SDK ---------------------------------------------------------------------------------------------


async def test_the_agents_sdk_carries_the_program(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Sent(monkeypatch)
    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI() as sdk, agentserving.program("agents") as p:
        model = agents.OpenAIChatCompletionsModel("tiny", sdk)
        settings = agents.ModelSettings(max_tokens=3)
        first = agents.Agent(name="first", instructions="be brief", model=model, model_settings=settings)
        for _ in range(2):
            await agents.Runner.run(first, "hello")
    row(cluster, p.program_id, 2)
    assert sent.parents == {0: [], 1: [0]}


async def test_the_agents_sdk_does_so_over_the_responses_api(monkeypatch: pytest.MonkeyPatch) -> None:
    agents.set_tracing_disabled(True)
    monkeypatch.delenv("AGENTSERVING_CONTROL_PLANE", raising=False)
    async with rig(answer_responses) as made:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{made.port}/v1")
        agentserving.instrument()
        try:
            async with openai.AsyncOpenAI(api_key="none") as sdk, agentserving.program(program_id="r1"):
                agent = agents.Agent(name="one", model=agents.OpenAIResponsesModel("tiny", sdk))
                assert (await agents.Runner.run(agent, "hello")).final_output == "done"
        finally:
            agentserving.uninstrument()
        # The SDK runs its first turn in a task of its own.
        assert set(made.plane.table.rows[("default", "r1")].threads) == {"t1"}


async def answer_responses(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A short answer of the responses API."""
    text = '{"type":"output_text","text":"done","annotations":[]}'
    body = (
        '{"id":"resp_1","object":"response","created_at":1,"model":"tiny","parallel_tool_calls":false,"tools":[],'
        '"tool_choice":"auto","status":"completed","usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2,'
        '"input_tokens_details":{"cached_tokens":0},"output_tokens_details":{"reasoning_tokens":0}},"output":['
        '{"id":"m1","type":"message","role":"assistant","status":"completed","content":[' + text + "]}]}"
    )
    await answer(writer, body)


async def answer_messages(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A short answer of Anthropic's messages API."""
    await answer(
        writer,
        '{"id":"msg_1","type":"message","role":"assistant","model":"tiny","content":[{"type":"text","text":"done"}],'
        '"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}',
    )


async def answer(writer: asyncio.StreamWriter, body: str) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    await writer.drain()


# -- Anthropic -----------------------------------------------------------------------------------------------------


async def test_the_anthropic_sdk_carries_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTSERVING_CONTROL_PLANE", raising=False)
    async with rig(answer_messages) as made:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{made.port}")
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        agentserving.instrument()
        try:
            async with anthropic.AsyncAnthropic(api_key="none") as sdk, agentserving.program(program_id="a1") as p:
                await sdk.messages.create(model="tiny", max_tokens=3, messages=MESSAGES)
                with p.thread("critic"):
                    await sdk.messages.create(model="tiny", max_tokens=3, messages=MESSAGES)
        finally:
            agentserving.uninstrument()
        found = made.plane.table.rows[("default", "a1")]
        assert set(found.threads) == {"main", "critic"}
        second = next(call for call in found.calls.values() if call.thread_id == "critic")
        assert second.parents == ["a1.1.0"]


# -- without a control plane ---------------------------------------------------------------------------------------


async def test_the_control_plane_being_away_costs_an_agent_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with origin() as gateway:
        monkeypatch.setenv("AGENTSERVING_GATEWAY", gateway.base_url)
        monkeypatch.setenv("AGENTSERVING_CONTROL_PLANE", "127.0.0.1:9")
        agentserving.instrument()
        try:
            async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="none") as sdk:
                for _ in range(3):
                    async with agentserving.program("alone") as p, p.tool_wait("search"):
                        await sdk.chat.completions.create(model="tiny", messages=MESSAGES)
                    with agentserving.program("alone"):
                        await sdk.chat.completions.create(model="tiny", messages=MESSAGES)
        finally:
            agentserving.uninstrument()
    assert [sent["program-name"] for sent in gateway.seen] == ["alone"] * 6
    assert sum("control plane is unavailable" in record.message for record in caplog.records) == 1


# -- the example ---------------------------------------------------------------------------------------------------


def test_the_example_runs_as_it_stands(cluster: Cluster) -> None:
    done = subprocess.run([sys.executable, "-m", "examples.with_client"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = row(cluster, done.stdout.split(":")[0].removeprefix("program "), 5)
    assert threads(found) == {"main": 2, "t1": 1, "t2": 1, "critic": 1}
    with Client() as client:
        programs = client.list_programs(states=[ProgramState.CLOSED])
        children = [p for p in programs if p.parent_program_id == found.program_id]
    assert [(child.name, child.calls_completed, child.outcome) for child in children] == [
        ("research", 2, Outcome.COMPLETED)
    ]
