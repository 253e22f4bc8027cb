"""Whole agents of the official SDKs on a simulated engine: tools, streams, structured output, reasoning, stops."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import jsonschema
import openai
import pydantic
import pytest
from agentserving_simulator.answers.behaviour import ANSWER, Behaviour
from agentserving_simulator.http_front import Conduct
from support.simulated_engine import LIMITS, MODEL, simulated

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 3},
        "days": {"type": "integer", "minimum": 2, "maximum": 7},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
TIME = {"type": "object", "properties": {"zone": {"type": "string", "pattern": "^[A-Z]{3}$"}}, "required": ["zone"]}
SCHEMAS = {"weather": WEATHER, "time": TIME}
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
RESPONSES_TOOLS: Any = [{"type": "function", "name": n, "parameters": s, "strict": True} for n, s in SCHEMAS.items()]
MESSAGES_TOOLS: Any = [{"name": n, "input_schema": s} for n, s in SCHEMAS.items()]
QUESTION = "What is the weather?"
TWO_TURNS = Conduct(behaviour=Behaviour(turns=2, parallel_calls=2))


class City(pydantic.BaseModel):
    """A structured answer."""

    name: str = pydantic.Field(min_length=2)
    size: int
    tags: list[str]


def check(name: str, arguments: str | object) -> None:
    jsonschema.validate(json.loads(arguments) if isinstance(arguments, str) else arguments, SCHEMAS[name])


async def test_an_agent_on_chat_completions_gets_its_calls_and_then_its_answer() -> None:
    async with simulated(TWO_TURNS) as served:
        sdk = served.openai()
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        called, cached, prompts = [], [], []
        while True:
            answer = await sdk.chat.completions.create(model=MODEL, messages=messages, tools=CHAT_TOOLS)
            (choice,) = answer.choices
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
            prompts.append(answer.usage.prompt_tokens + answer.usage.completion_tokens)
            messages.append(choice.message.model_dump())
            if not choice.message.tool_calls:
                break
            assert choice.finish_reason == "tool_calls"
            for call in choice.message.tool_calls:
                assert call.type == "function"
                check(call.function.name, call.function.arguments)
                called.append(call.function.name)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
        assert called == ["weather", "time", "weather", "time"]
        assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")
        # Each prompt is the one before with its answer: all their full blocks are found again.
        assert cached[0] == 0
        assert [found > before - 2 * LIMITS.block_size for before, found in zip(prompts, cached[1:], strict=False)] == [
            True,
            True,
        ]


async def test_a_streamed_chat_is_the_whole_one() -> None:
    async with simulated(TWO_TURNS) as served:
        sdk = served.openai()
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        async with sdk.chat.completions.stream(
            model=MODEL, messages=messages, tools=RESPONSES_IN_CHAT, stream_options={"include_usage": True}
        ) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
        whole = await sdk.chat.completions.create(model=MODEL, messages=messages, tools=CHAT_TOOLS)
        calls = [[call.function for call in each.choices[0].message.tool_calls or []] for each in (final, whole)]
        assert [(call.name, call.arguments) for call in calls[0]] == [(call.name, call.arguments) for call in calls[1]]
        assert "tool_calls.function.arguments.done" in kinds
        assert final.usage is not None
        assert whole.usage is not None
        assert final.usage.completion_tokens == whole.usage.completion_tokens


# The helper that parses streams wants its tools marked as strict.
RESPONSES_IN_CHAT: Any = [{"type": "function", "function": {**each["function"], "strict": True}} for each in CHAT_TOOLS]


async def test_an_agent_on_messages_gets_its_calls_and_then_its_answer() -> None:
    async with simulated(TWO_TURNS) as served:
        sdk = served.anthropic()
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        called = []
        while True:
            async with sdk.messages.stream(
                model=MODEL, max_tokens=1000, messages=messages, tools=MESSAGES_TOOLS, system="Be brief."
            ) as stream:
                kinds = [event.type async for event in stream]
                answer = await stream.get_final_message()
            assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
            messages.append({"role": "assistant", "content": [block.model_dump() for block in answer.content]})
            uses = [block for block in answer.content if block.type == "tool_use"]
            if not uses:
                break
            assert answer.stop_reason == "tool_use"
            for use in uses:
                check(use.name, use.input)
                called.append(use.name)
            results = [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"} for use in uses]
            # As Claude Code does.
            reminder = {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>"}
            messages.append({"role": "user", "content": [*results, reminder]})
        (text,) = answer.content
        assert (text.type, answer.stop_reason) == ("text", "end_turn")
        assert text.type == "text"
        assert text.text == ANSWER
        assert called == ["weather", "time", "weather", "time"]
        assert (answer.usage.cache_read_input_tokens or 0) > answer.usage.input_tokens


async def test_counted_tokens_are_those_of_the_prompt() -> None:
    async with simulated() as served:
        sdk = served.anthropic()
        asked: dict[str, Any] = {
            "model": MODEL,
            "system": "Be brief.",
            "messages": [{"role": "user", "content": QUESTION}],
            "tools": MESSAGES_TOOLS,
        }
        counted = await sdk.messages.count_tokens(**asked)
        answer = await sdk.messages.create(**asked, max_tokens=5)
        assert answer.usage.input_tokens == counted.input_tokens > len(QUESTION) // 5
        assert answer.stop_reason == "max_tokens"


async def test_a_tool_of_a_namespace_is_called_by_both_names_and_the_agent_gets_its_answer() -> None:
    spawn: Any = {"type": "function", "name": "spawn", "parameters": {"type": "object", "properties": {}}}
    tools: Any = [{"type": "namespace", "name": "team", "description": "Sub-agents.", "tools": [spawn]}]
    async with simulated() as served:
        sdk = served.openai()
        async with sdk.responses.stream(model=MODEL, input=QUESTION, tools=tools) as stream:
            (call,) = (await stream.get_final_response()).output
        assert call.type == "function_call"
        assert (call.name, call.namespace) == ("spawn", "team")
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "spawned"}
        items: Any = [{"role": "user", "content": QUESTION}, call.model_dump(exclude_none=True), result]
        last = await sdk.responses.create(model=MODEL, input=items, tools=tools)
        assert last.output_text == ANSWER


async def test_an_agent_on_responses_gets_its_calls_and_then_its_answer() -> None:
    async with simulated(TWO_TURNS) as served:
        sdk = served.openai()
        items: list[Any] = [{"role": "user", "content": QUESTION}]
        called = []
        while True:
            async with sdk.responses.stream(
                model=MODEL, input=items, tools=RESPONSES_TOOLS, instructions="Be brief.", reasoning={"effort": "low"}
            ) as stream:
                events = [event async for event in stream]
                answer = await stream.get_final_response()
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert answer.id.startswith("resp_e0_")
            assert answer.output[0].type == "reasoning"
            assert answer.usage is not None
            assert answer.usage.output_tokens_details.reasoning_tokens > 0
            items += [item.model_dump(exclude_none=True) for item in answer.output]
            calls = [item for item in answer.output if item.type == "function_call"]
            if not calls:
                break
            for call in calls:
                check(call.name, call.arguments)
                called.append(call.name)
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
        assert (answer.output_text, answer.status) == (ANSWER, "completed")
        assert called == ["weather", "time", "weather", "time"]


async def test_a_streamed_response_is_the_whole_one() -> None:
    async with simulated() as served:
        sdk = served.openai()
        asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "tools": RESPONSES_TOOLS}
        whole = await sdk.responses.create(**asked)
        stream = await sdk.responses.create(**asked, stream=True)
        last = [event async for event in stream][-1]
        assert last.type == "response.completed"
        found, expected = (
            [each.model_dump(exclude={"id", "call_id"}) for each in response.output]
            for response in (last.response, whole)
        )
        assert found == expected
        cut = await sdk.responses.create(**asked, max_output_tokens=3)
        assert cut.incomplete_details is not None
        assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_a_tool_choice_is_honoured() -> None:
    async with simulated(Conduct(behaviour=Behaviour(turns=0, parallel_calls=3))) as served:
        sdk, claude = served.openai(), served.anthropic()
        messages: Any = [{"role": "user", "content": QUESTION}]

        async def names(**choice: Any) -> list[str]:
            answer = await sdk.chat.completions.create(model=MODEL, messages=messages, tools=CHAT_TOOLS, **choice)
            return [call.function.name for call in answer.choices[0].message.tool_calls or []]  # type: ignore[union-attr]

        assert await names() == []
        assert len(await names(tool_choice="required")) == 1
        assert await names(tool_choice={"type": "function", "function": {"name": "time"}}) == ["time"]
        with pytest.raises(openai.BadRequestError, match="not among the tools"):
            await names(tool_choice={"type": "function", "function": {"name": "nothing"}})
        chosen: Any = {"type": "tool", "name": "weather"}
        message = await claude.messages.create(
            model=MODEL, max_tokens=500, messages=messages, tools=MESSAGES_TOOLS, tool_choice=chosen
        )
        assert [block.type for block in message.content] == ["tool_use"]
        response = await sdk.responses.create(
            model=MODEL, input=QUESTION, tools=RESPONSES_TOOLS, tool_choice={"type": "function", "name": "time"}
        )
        assert [item.type for item in response.output] == ["function_call"]
    async with simulated(TWO_TURNS) as served:
        answer = await served.openai().chat.completions.create(
            model=MODEL, messages=messages, tools=CHAT_TOOLS, parallel_tool_calls=False
        )
        assert len(answer.choices[0].message.tool_calls or []) == 1
        none = await served.anthropic().messages.create(
            model=MODEL, max_tokens=500, messages=messages, tools=MESSAGES_TOOLS, tool_choice={"type": "none"}
        )
        assert none.stop_reason == "end_turn"


async def test_an_answer_has_the_structure_that_is_asked_for() -> None:
    async with simulated() as served:
        sdk, claude = served.openai(), served.anthropic()
        messages: Any = [{"role": "user", "content": QUESTION}]
        chat = await sdk.chat.completions.parse(model=MODEL, messages=messages, response_format=City)
        response = await sdk.responses.parse(model=MODEL, input=QUESTION, text_format=City)
        message = await claude.messages.parse(model=MODEL, max_tokens=200, messages=messages, output_format=City)
        found = chat.choices[0].message.parsed
        assert isinstance(found, City)
        assert response.output_parsed == message.parsed_output == found
        choice = await sdk.completions.create(
            model=MODEL, prompt="x", max_tokens=20, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
        )
        assert choice.choices[0].text in ("yes", "no")


async def test_an_answer_ends_before_a_stop_text() -> None:
    async with simulated() as served:
        sdk, claude = served.openai(), served.anthropic()
        messages: Any = [{"role": "user", "content": QUESTION}]
        stop = "simulated"
        chat = await sdk.chat.completions.create(
            model=MODEL, messages=messages, tools=CHAT_TOOLS, tool_choice="none", stop=stop
        )
        assert chat.choices[0].message.content == ANSWER[: ANSWER.index(stop)]
        assert chat.choices[0].finish_reason == "stop"
        async with claude.messages.stream(
            model=MODEL, max_tokens=500, messages=messages, tools=MESSAGES_TOOLS, tool_choice={"type": "none"},
            stop_sequences=["never", stop],
        ) as stream:  # fmt: skip
            message = await stream.get_final_message()
        (block,) = message.content
        assert block.type == "text"
        assert block.text == ANSWER[: ANSWER.index(stop)]
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
        # Placeholder words have a digit each.
        words = await sdk.completions.create(model=MODEL, prompt="x", max_tokens=50, stop=["3"])
        assert words.choices[0].finish_reason == "stop"
        assert words.choices[0].text[-2] == "2" or words.choices[0].text[-3] == "2"
        assert "3" not in words.choices[0].text


async def test_reasoning_comes_in_the_fields_of_each_api() -> None:
    async with simulated() as served:
        sdk, claude = served.openai(), served.anthropic()
        messages: Any = [{"role": "user", "content": QUESTION}]
        chat = await sdk.chat.completions.create(model=MODEL, messages=messages, reasoning_effort="low")
        assert chat.usage is not None
        assert chat.usage.completion_tokens_details is not None
        assert (chat.usage.completion_tokens_details.reasoning_tokens or 0) >= 16
        assert chat.choices[0].message.model_extra is not None
        assert chat.choices[0].message.model_extra["reasoning"]
        assert chat.choices[0].message.content
        async with claude.messages.stream(
            model=MODEL, max_tokens=2000, messages=messages, thinking={"type": "enabled", "budget_tokens": 1024}
        ) as stream:
            message = await stream.get_final_message()
        assert [block.type for block in message.content] == ["thinking", "text"]
        thinking = message.content[0]
        assert thinking.type == "thinking"
        assert thinking.thinking
        assert thinking.signature
        # It is sent back, and the engine takes it.
        messages += [
            {"role": "assistant", "content": [block.model_dump() for block in message.content]},
            {"role": "user", "content": "Go on."},
        ]
        await claude.messages.create(model=MODEL, max_tokens=5, messages=messages)


async def test_a_refusal_is_an_exception_of_the_sdk() -> None:
    async with simulated() as served:
        sdk, claude = served.openai(), served.anthropic()
        with pytest.raises(openai.NotFoundError, match="stores none"):
            await sdk.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await sdk.responses.create(model=MODEL, input="word " * LIMITS.max_model_len)
        with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
            await claude.messages.count_tokens(
                model=MODEL, messages=[{"role": "user", "content": "word " * LIMITS.max_model_len * 2}]
            )
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            await claude.messages.create(model="other", max_tokens=1, messages=[{"role": "user", "content": "x"}])
        assert (await sdk.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("other")


async def test_embeddings_of_like_texts_are_close() -> None:
    async with simulated() as served:
        sdk = served.openai()
        texts = ["the cat sat on the mat", "a cat sat on the mat", "quarterly revenue grew"]
        answer = await sdk.embeddings.create(model=MODEL, input=texts, dimensions=512)
        cat, other_cat, revenue = (each.embedding for each in answer.data)
        assert len(cat) == 512
        assert dot(cat, cat) == pytest.approx(1.0, abs=1e-5)
        assert dot(cat, other_cat) > 0.5 > dot(cat, revenue)
        assert answer.usage.prompt_tokens > 10
        plain = await sdk.embeddings.create(model=MODEL, input=texts[0], dimensions=512, encoding_format="float")
        assert plain.data[0].embedding == pytest.approx(cat, abs=1e-6)
        with pytest.raises(openai.BadRequestError, match="input must be"):
            await sdk.embeddings.create(model=MODEL, input=[])


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_the_tool_runner_of_the_sdk_sends_whole_conversations_to_an_engine_that_stores_none() -> None:
    ran = []

    @anthropic.beta_async_tool
    async def search(query: str) -> str:
        """Searches."""
        ran.append(query)
        return "found"

    async with simulated(Conduct(behaviour=Behaviour(turns=2))) as served:
        runner = served.anthropic().beta.messages.tool_runner(
            model=MODEL, max_tokens=500, tools=[search], messages=[{"role": "user", "content": QUESTION}]
        )
        answer = await runner.until_done()
        (block,) = answer.content
        assert block.type == "text"
        assert block.text == ANSWER
        assert len(ran) == 2
