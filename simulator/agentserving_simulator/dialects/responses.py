"""/v1/responses: its requests. Pure.

Nothing is stored: as with vLLM by default, the client sends the whole conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentserving_simulator.answers import asked as reading
from agentserving_simulator.answers.asked import Asked, BadRequestError, Tool, Tools, tools_of
from agentserving_simulator.answers.conversation import (
    ASSISTANT,
    ToolCall,
    Turn,
    content_text,
    render,
    spelled,
)
from agentserving_simulator.dialects.chat import NO_REASONING, chosen, structured
from agentserving_simulator.tokens import tokenize

# Fields that a response repeats, and their values when the request has none.
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": None,
    "service_tier": "auto",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_RESULTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output", "shell_call_output")


def parse(body: dict[str, Any], max_model_len: int) -> Asked:
    """Raises BadRequestError. Unknown fields are ignored, as in vLLM."""
    if body.get("previous_response_id") is not None:
        name = body["previous_response_id"]
        message = f"the response {name!r} is not found: this engine stores none, so send the whole conversation"
        raise BadRequestError(message, "previous_response_id", 404)
    if body.get("background"):
        raise BadRequestError("background responses need a store, which this engine has not", "background")
    turns = _turns(body)
    listed = body.get("tools") or []
    return Asked(
        prompts=[tokenize(reading.checked_prompt(render(turns, listed), max_model_len))],
        max_tokens=reading.max_tokens(body, ("max_output_tokens",), max_model_len),
        stream=bool(body.get("stream")),
        include_usage=True,
        cache_salt=str(body.get("cache_salt") or ""),
        ignore_eos=bool(body.get("ignore_eos")),
        stop=reading.stops(body, "stop"),
        tools=_tools(listed, body.get("tool_choice"), body.get("parallel_tool_calls")),
        schema=_schema(body),
        has_tools=bool(listed),
        reasoning=_mapping(body.get("reasoning")).get("effort") not in NO_REASONING,
        conversation=tuple(turns),
        echoed={name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()},
    )


def _schema(body: dict[str, Any]) -> object:
    form = _mapping(_mapping(body.get("text")).get("format"))
    # The fields that chat completions have one level deeper.
    deeper = {"type": "json_schema", "json_schema": form} if form.get("type") == "json_schema" else form
    return structured(body, deeper)


def _turns(body: dict[str, Any]) -> list[Turn]:
    instructions = body.get("instructions")
    turns = [Turn("system", content_text(instructions))] if instructions else []
    given = body.get("input")
    if isinstance(given, str):
        return [*turns, Turn("user", given)]
    return [*turns, *_joined(reading.objects(body, "input"))]


def _joined(items: list[dict[str, Any]]) -> Iterator[Turn]:
    """Turns of a conversation; what an answer consists of is one turn, as it was generated."""
    text, calls, answering = "", list[ToolCall](), False
    for item in items:
        kind = item.get("type") or "message"
        if kind == "reasoning":
            continue
        call = _call(item) if kind.endswith("_call") else None
        if call is not None or (kind == "message" and item.get("role") == ASSISTANT):
            answering = True
            calls += [call] if call else []
            text += "" if call else content_text(item.get("content"))
            continue
        if answering:
            yield Turn(ASSISTANT, text, tuple(calls))
            text, calls, answering = "", [], False
        yield _other(item, kind)
    if answering:
        yield Turn(ASSISTANT, text, tuple(calls))


def _call(item: Mapping[str, Any]) -> ToolCall:
    arguments = item.get("arguments") or item.get("input") or item.get("action") or ""
    return ToolCall(str(item.get("name") or item.get("type")), spelled(arguments))


def _other(item: dict[str, Any], kind: str) -> Turn:
    if kind == "message":
        return Turn(str(item.get("role")), content_text(item.get("content")))
    if kind in _RESULTS:
        return Turn("tool", content_text(item.get("output")))
    return Turn(kind, spelled({name: each for name, each in item.items() if name not in ("id", "type")}))


def _tools(listed: object, choice: object, parallel: object) -> Tools:
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise BadRequestError("tools must be a list of objects", "tools")
    offered = list(_functions(listed))
    mode, names = chosen(choice)
    return tools_of(offered, mode=mode, names=names, parallel=parallel)


def _functions(listed: list[dict[str, Any]], namespace: object = "") -> Iterator[Tool]:
    """Others (web search, freeform tools with a grammar) are never called."""
    for each in listed:
        if each.get("type") == "function":
            yield reading.tool(each.get("name"), each.get("parameters"), namespace)
        elif each.get("type") == "namespace" and not namespace:
            yield from _functions(reading.objects(each, "tools"), each.get("name"))


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}
