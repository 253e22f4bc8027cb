"""/v1/chat/completions: its requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentserving_simulator.answers import asked as reading
from agentserving_simulator.answers.asked import Asked, BadRequestError, Tool, Tools, tools_of
from agentserving_simulator.answers.conversation import (
    ToolCall,
    Turn,
    content_text,
    render,
    spelled,
)
from agentserving_simulator.tokens import tokenize

# What a message has beside what the prompt shows; reasoning is left out of later prompts.
_SHOWN = ("role", "content", "name", "tool_calls", "function_call", "reasoning", "reasoning_content")
NO_REASONING = (None, "none", "minimal")


def parse(body: dict[str, Any], max_model_len: int) -> Asked:
    """Raises BadRequestError. Unknown fields are ignored, as in vLLM."""
    turns = [_turn(message) for message in reading.objects(body, "messages")]
    listed = body.get("tools") or []
    options = body.get("stream_options")
    return Asked(
        prompts=[tokenize(reading.checked_prompt(render(turns, listed), max_model_len))],
        max_tokens=reading.max_tokens(body, ("max_completion_tokens", "max_tokens"), max_model_len),
        choices=reading.count(body.get("n") or 1, "n", reading.MAX_CHOICES),
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        cache_salt=str(body.get("cache_salt") or ""),
        ignore_eos=bool(body.get("ignore_eos")),
        stop=reading.stops(body, "stop"),
        tools=_tools(listed, body.get("tool_choice"), body.get("parallel_tool_calls")),
        schema=structured(body, body.get("response_format")),
        has_tools=bool(listed),
        reasoning=_reasons(body),
        conversation=tuple(turns),
    )


def structured(body: Mapping[str, Any], form: object) -> object:
    """The schema of OpenAI's `response_format` or of vLLM's `structured_outputs`; None = any text.

    Raises BadRequestError.
    """
    own = body.get("structured_outputs")
    if isinstance(own, dict):
        if own.get("choice"):
            return {"enum": own["choice"]}
        if own.get("json") is not None:
            return own["json"]
        if own.get("regex"):
            return {"type": "string", "pattern": own["regex"]}
    if not isinstance(form, dict) or form.get("type") in (None, "text"):
        return None
    if form["type"] == "json_object":
        return {"type": "object"}
    schema = form.get("json_schema")
    if form["type"] != "json_schema" or not isinstance(schema, dict):
        raise BadRequestError("response_format must be text, json_object, or json_schema", "response_format")
    return schema.get("schema", {"type": "object"})


def _reasons(body: Mapping[str, Any]) -> bool:
    template = body.get("chat_template_kwargs")
    if isinstance(template, dict) and template.get("enable_thinking") is not None:
        return bool(template["enable_thinking"])
    return body.get("reasoning_effort") not in NO_REASONING


def _turn(message: dict[str, Any]) -> Turn:
    extra = {key: value for key, value in message.items() if key not in _SHOWN and value is not None}
    calls = tuple(_call(call) for call in message.get("tool_calls") or () if isinstance(call, dict))
    return Turn(
        str(message.get("role")), content_text(message.get("content")), calls, spelled(extra) if extra else ""
    )  # fmt: skip


def _call(call: dict[str, Any]) -> ToolCall:
    function = call.get("function") or call.get("custom")
    function = function if isinstance(function, dict) else {}
    return ToolCall(str(function.get("name")), spelled(function.get("arguments") or function.get("input") or ""))


def _tools(listed: object, choice: object, parallel: object) -> Tools:
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise BadRequestError("tools must be a list of objects", "tools")
    offered = [_tool(each["function"]) for each in listed if isinstance(each.get("function"), dict)]
    mode, names = chosen(choice)
    return tools_of(offered, mode=mode, names=names, parallel=parallel)


def _tool(function: dict[str, Any]) -> Tool:
    return reading.tool(function.get("name"), function.get("parameters"))


def chosen(choice: object) -> tuple[str, list[str] | None]:
    """OpenAI's `tool_choice` as (mode, names of those that may be called; None = all). Raises BadRequestError."""
    if choice is None or choice in ("auto", "none", "required"):
        return str(choice or "auto"), None
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        if isinstance(name, str):
            return "required", [name]
        allowed = choice.get("allowed_tools", choice)
        if choice.get("type") == "allowed_tools" and isinstance(allowed, dict):
            return str(allowed.get("mode") or "auto"), _names(allowed.get("tools"))
    raise BadRequestError(f"tool_choice is {choice!r}: give none, auto, required, or a function", "tool_choice")


def _names(tools: object) -> list[str]:
    found = [each for each in tools if isinstance(each, dict)] if isinstance(tools, list) else []
    return [str((each.get("function") or each).get("name")) for each in found]
