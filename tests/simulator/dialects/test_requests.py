"""What the simulated engine reads out of a request, and which field it names when it refuses one."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_simulator.answers.asked import BadRequestError, document
from agentserving_simulator.dialects import chat, completions, messages, responses

PARSERS = {
    "chat": chat.parse,
    "completions": completions.parse,
    "messages": messages.parse,
    "responses": responses.parse,
}
LIMIT = 100
USER: Any = {"messages": [{"role": "user", "content": "x"}]}
FUNCTION: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("abcd efgh", [["abcd", " efgh"]]),
        ([1, 2], [["1", "2"]]),
        (["ab", "cd"], [["ab"], ["cd"]]),
        ([[1], [2]], [["1"], ["2"]]),
    ],
)
def test_a_prompt_may_be_text_or_token_ids_or_several(prompt: object, tokens: list[list[str]]) -> None:
    assert completions.parse({"prompt": prompt}, LIMIT).prompts == tokens


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({"messages": "hello"}, "chat", "messages"),
        ({"messages": []}, "chat", "messages"),
        ({"messages": [1]}, "chat", "messages"),
        ({**USER, "tools": [1]}, "chat", "tools"),
        ({**USER, "tools": [{"function": {"parameters": {}}}]}, "chat", "tools"),
        ({**USER, "tools": [FUNCTION], "tool_choice": "always"}, "chat", "tool_choice"),
        ({**USER, "tool_choice": "required"}, "chat", "tool_choice"),
        ({**USER, "response_format": {"type": "xml"}}, "chat", "response_format"),
        ({**USER, "stop": [1]}, "chat", "stop"),
        ({**USER, "max_completion_tokens": 0}, "chat", "max_completion_tokens"),
        ({"prompt": ""}, "completions", "prompt"),
        ({"prompt": [[]]}, "completions", "prompt"),
        ({"prompt": [1.5]}, "completions", "prompt"),
        ({"prompt": "x " * 20_000}, "completions", "prompt"),
        ({"prompt": "x", "max_tokens": -1}, "completions", "max_tokens"),
        ({"prompt": "x", "max_tokens": True}, "completions", "max_tokens"),
        ({"prompt": "x", "n": 1000}, "completions", "n"),
        (USER, "messages", "max_tokens"),
        ({"max_tokens": 1, "messages": [{"role": "tool", "content": "x"}]}, "messages", "messages"),
        ({"max_tokens": 1, "messages": [{"role": "user", "content": [1]}]}, "messages", "messages"),
        ({"max_tokens": 1, "messages": [{"role": "user", "content": 1}]}, "messages", "messages"),
        ({**USER, "max_tokens": 1, "tool_choice": {"type": "always"}}, "messages", "tool_choice"),
        ({"input": 7}, "responses", "input"),
        ({"input": "x", "background": True}, "responses", "background"),
        ({"input": "x", "previous_response_id": "resp_1"}, "responses", "previous_response_id"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "f"}}, "responses", "tool_choice"),
    ],
)
def test_a_bad_body_is_refused_by_the_field_that_is_wrong(body: dict[str, Any], kind: str, param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        PARSERS[kind](body, LIMIT)
    assert refused.value.param == param


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(BadRequestError, match="not a JSON object"):
        document([])


def test_allowed_tools_are_those_that_may_be_called() -> None:
    tools = [{"type": "function", "name": name} for name in ("a", "b")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    found = responses.parse({"input": "x", "tools": tools, "tool_choice": choice}, LIMIT).tools
    assert ([tool.name for tool in found.offered], found.must_call) == (["b"], True)


def test_tools_that_others_run_are_never_called() -> None:
    found = messages.parse({**USER, "max_tokens": 1, "tools": [{"type": "web_search_20250305", "name": "s"}]}, LIMIT)
    assert (found.tools.offered, found.has_tools) == ((), True)
    asked = responses.parse({"input": "x", "tools": [{"type": "custom", "name": "apply_patch"}]}, LIMIT)
    assert (asked.tools.offered, asked.has_tools) == ((), True)
