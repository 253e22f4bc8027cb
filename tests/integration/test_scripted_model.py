"""`agentserving up` as it stands, with real vLLM: agents of every dialect get a tool call, and then an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(900)]

ANSWER = "Done. This is a scripted model, served by vLLM and scheduled as part of your program."
HELLO = {"command": "echo hello from agentserving", "description": "Say hello"}
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}, "description": {"type": "string"}}}
# A coding agent's prompt: 80 kB of instructions come first.
INSTRUCTIONS = "Use the tools that you are given, one at a time, and read their results. " * 1100
BASH: Any = {"type": "function", "function": {"name": "Bash", "description": "Runs a command.", "parameters": SCHEMA}}
OTHER: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(
        tmp_path_factory.mktemp("scripted") / "state", "--engines", "1", "--store", "memory", auth=True, bound_s=800
    )
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def sdk(cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=cluster.addresses["gateway"], api_key=cluster.key, max_retries=0, timeout=120)


def chat(sdk: openai.OpenAI, tools: list[Any], *messages: Any) -> Any:
    answer = sdk.chat.completions.create(model="scripted", messages=list(messages), tools=tools, max_tokens=200)
    return answer.choices[0].message


def calls(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def test_an_agent_loop_ends_after_one_tool_call_however_long_its_instructions_are(sdk: openai.OpenAI) -> None:
    system = {"role": "system", "content": INSTRUCTIONS}
    user = {"role": "user", "content": "say hello"}
    # Claude Code adds one after its user's message.
    more = {"role": "system", "content": "Available agents: none."}
    first = chat(sdk, [OTHER, BASH], system, user, more)
    (call,) = first.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("Bash", HELLO)
    result = {"role": "tool", "tool_call_id": call.id, "content": "hello from agentserving"}
    last = chat(sdk, [OTHER, BASH], system, user, first.model_dump(exclude_none=True), result)
    assert (last.tool_calls or [], last.content) == ([], ANSWER)


def test_a_streamed_tool_call_is_the_same(sdk: openai.OpenAI) -> None:
    stream: Any = sdk.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "hi"}], tools=[BASH], stream=True, max_tokens=200
    )
    deltas = [delta for chunk in stream for choice in chunk.choices for delta in choice.delta.tool_calls or []]
    assert "".join(delta.function.name or "" for delta in deltas if delta.function) == "Bash"
    arguments = "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    assert "echo hello from agentserving" in arguments


def test_a_word_in_the_request_chooses_the_calls(sdk: openai.OpenAI) -> None:
    message = chat(sdk, [WEATHER], {"role": "user", "content": "USE_TWO_CITIES please"})
    assert [name for name, _ in calls(message)] == ["get_weather", "get_weather"]
    assert [json.loads(arguments) for _, arguments in calls(message)] == [{"city": "Rome"}, {"city": "Oslo"}]


def test_without_a_known_tool_it_answers(sdk: openai.OpenAI) -> None:
    assert chat(sdk, [OTHER], {"role": "user", "content": "hi"}).content == ANSWER


def test_claude_codes_dialect_calls_tools_too(cluster: Cluster) -> None:
    base_url = cluster.addresses["gateway"].removesuffix("/v1")
    sdk = anthropic.Anthropic(base_url=base_url, api_key=cluster.key, max_retries=0, timeout=120)
    tools: Any = [{"name": "Bash", "description": "Runs a command.", "input_schema": SCHEMA}]
    answer = sdk.messages.create(
        model="scripted", max_tokens=200, messages=[{"role": "user", "content": "hi"}], tools=tools
    )
    (use,) = [block for block in answer.content if block.type == "tool_use"]
    assert (use.name, use.input, answer.stop_reason) == ("Bash", HELLO, "tool_use")


def test_codexs_dialect_calls_tools_too(sdk: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "exec_command", "parameters": SCHEMA, "strict": False}]
    answer = sdk.responses.create(model="scripted", input="hi", tools=tools, max_output_tokens=200)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("exec_command", {"cmd": "echo hello from agentserving"})
