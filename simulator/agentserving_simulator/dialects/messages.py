"""/v1/messages and /v1/messages/count_tokens: their requests. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentserving_simulator.answers import asked as reading
from agentserving_simulator.answers.asked import Asked, BadRequestError, Tools, tools_of
from agentserving_simulator.answers.conversation import (
    ASSISTANT,
    ToolCall,
    Turn,
    attachment,
    content_text,
    render,
    spelled,
)
from agentserving_simulator.tokens import tokenize

_ROLES = ("user", ASSISTANT, "system")
_MODES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


def parse(body: dict[str, Any], max_model_len: int) -> Asked:
    """Raises BadRequestError. Unknown fields are ignored, as in vLLM."""
    if body.get("max_tokens") is None:
        raise BadRequestError("max_tokens is missing", "max_tokens")
    turns = _turns(body)
    listed = body.get("tools") or []
    return Asked(
        prompts=[prompt(body, max_model_len)],
        max_tokens=reading.max_tokens(body, ("max_tokens",), max_model_len),
        stream=bool(body.get("stream")),
        include_usage=True,
        cache_salt=str(body.get("cache_salt") or ""),
        ignore_eos=bool(body.get("ignore_eos")),
        stop=reading.stops(body, "stop_sequences"),
        tools=_tools(listed, body.get("tool_choice")),
        schema=_schema(body),
        has_tools=bool(listed),
        reasoning=_mapping(body.get("thinking")).get("type") in ("enabled", "adaptive"),
        conversation=tuple(turns),
    )


def prompt(body: dict[str, Any], max_model_len: int) -> list[str]:
    """The tokens of a request. Raises BadRequestError."""
    return tokenize(reading.checked_prompt(render(_turns(body), body.get("tools") or []), max_model_len))


def _turns(body: dict[str, Any]) -> list[Turn]:
    system = body.get("system")
    turns = [Turn("system", content_text(system))] if system else []
    for message in reading.objects(body, "messages"):
        if message.get("role") not in _ROLES:
            raise BadRequestError(f"a message's role must be one of {', '.join(_ROLES)}", "messages")
        turns += _message(str(message["role"]), message.get("content"))
    return turns


def _message(role: str, content: object) -> Iterator[Turn]:
    """A message's turns: each result of a tool is one of its own, in front of what the user says."""
    blocks = [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []
    if not isinstance(content, str | list) or len(blocks) != len(content) * isinstance(content, list):
        raise BadRequestError("a message's content must be text or a list of blocks", "messages")
    text, calls = content if isinstance(content, str) else "", []
    for block in blocks:
        match block.get("type"):
            case "text":
                text += str(block.get("text") or "")
            case "tool_use":
                calls.append(ToolCall(str(block.get("name")), spelled(block.get("input") or {})))
            case "tool_result":
                yield Turn("tool", content_text(block.get("content")))
            case "thinking" | "redacted_thinking":
                pass
            case _:
                text += attachment(block)
    if text or calls or not blocks:
        yield Turn(role, text, tuple(calls))


def _tools(listed: object, choice: object) -> Tools:
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise BadRequestError("tools must be a list of objects", "tools")
    # Those without a schema are run by Anthropic's servers.
    offered = [reading.tool(each.get("name"), each["input_schema"]) for each in listed if "input_schema" in each]
    wanted = _mapping(choice)
    mode = _MODES.get(str(wanted.get("type", "auto")))
    if mode is None:
        raise BadRequestError("tool_choice.type must be auto, any, tool, or none", "tool_choice")
    names = [str(wanted.get("name"))] if wanted.get("type") == "tool" else None
    return tools_of(offered, mode=mode, names=names, parallel=wanted.get("disable_parallel_tool_use") is not True)


def _schema(body: dict[str, Any]) -> object:
    form = _mapping(_mapping(body.get("output_config")).get("format") or body.get("output_format"))
    return form.get("schema", {"type": "object"}) if form.get("type") == "json_schema" else None


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}
