"""What a request asks for, whatever API it speaks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentserving_simulator.answers.conversation import ASSISTANT, Turn, turns_with_calls

MAX_CHOICES = 128
MAX_STOPS = 16
# Of a conversation's text in a token; `tokenize` makes no longer ones.
LONGEST_TOKEN = 5


class BadRequestError(Exception):
    """The request is invalid: message, parameter and HTTP status."""

    def __init__(self, message: str, param: str, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `schema` of its arguments. Few APIs have namespaces."""

    name: str
    schema: Mapping[str, Any]
    namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Those that may be called now: `must_call` one, or only if there is something to do."""

    offered: tuple[Tool, ...] = ()
    must_call: bool = False
    # Several calls in one turn.
    parallel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`choices` answers of at most `max_tokens` tokens for each of the tokenized `prompts`."""

    prompts: list[list[str]]
    # None = what the context has room for.
    max_tokens: int | None
    choices: int = 1
    stream: bool = False
    include_usage: bool = False
    cache_salt: str = ""
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    tools: Tools = field(default_factory=Tools)
    # The JSON schema of a structured answer; None = any text.
    schema: object = None
    # The request lists tools, whether they may be called or not: it is an agent's.
    has_tools: bool = False
    reasoning: bool = False
    # Empty for completions.
    conversation: tuple[Turn, ...] = ()
    # The tools of the request as they came, and other fields that an answer repeats.
    echoed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def turn(self) -> int:
        """How many turns with tool calls the conversation ends with."""
        if self.tools.must_call:
            # All were, though some agents (smolagents) send them back as text.
            return sum(turn.role == ASSISTANT for turn in self.conversation)
        return turns_with_calls(self.conversation)


def document(body: object) -> dict[str, Any]:
    """The body as a JSON object. Raises BadRequestError."""
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object", "")
    return body


def count(value: object, name: str, most: int) -> int:
    """A whole number from 1 to `most`. Raises BadRequestError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise BadRequestError(f"{name} must be a whole number from 1 to {most}, not {value!r}", name)
    return value


def max_tokens(body: Mapping[str, Any], names: Sequence[str], most: int) -> int | None:
    """The first of these limits that is given. Raises BadRequestError."""
    found = next((name for name in names if body.get(name) is not None), None)
    # More than any context, so that too large a number is no error, as in vLLM.
    return None if found is None else count(body[found], found, most * 1000)


def objects(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects, not empty. Raises BadRequestError."""
    found = body.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise BadRequestError(f"{name} must be a list of objects, and not empty", name)
    return found


def stops(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Texts before which an answer ends. Raises BadRequestError."""
    found = body.get(name)
    if found is None:
        return ()
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or len(found) > MAX_STOPS or not all(isinstance(each, str) for each in found):
        raise BadRequestError(f"{name} must be a text or a list of up to {MAX_STOPS} texts", name)
    return tuple(each for each in found if each)


def tools_of(
    offered: Sequence[Tool], *, mode: str, names: Sequence[str] | None = None, parallel: object = True
) -> Tools:
    """`mode`: "none", "auto" or "required"; of the tools only `names` may be called. Raises BadRequestError."""
    chosen = tuple(tool for tool in offered if names is None or tool.name in names)
    if names is not None and not chosen:
        raise BadRequestError(f"tool_choice names {', '.join(names)}, which is not among the tools", "tool_choice")
    if mode == "required" and not chosen:
        raise BadRequestError("tool_choice requires a call, and there are no tools", "tool_choice")
    if mode == "none":
        chosen = ()
    return Tools(offered=chosen, must_call=mode == "required", parallel=parallel is not False)


def tool(name: object, schema: object, namespace: object = "") -> Tool:
    """Raises BadRequestError."""
    if not isinstance(name, str) or not name:
        raise BadRequestError("a tool has no name", "tools")
    if schema is not None and not isinstance(schema, Mapping):
        raise BadRequestError(f"the parameters of the tool {name} must be a JSON schema", "tools")
    return Tool(name, {"type": "object", **(schema or {})}, str(namespace or ""))


def checked_prompt(text: str, max_model_len: int) -> str:
    """The text, unless it certainly has too many tokens: counting those of a huge one would hold the engine's loop."""
    if len(text) >= max_model_len * LONGEST_TOKEN:
        too_long(-(-len(text) // LONGEST_TOKEN), max_model_len, more="at least ")
    return text


def too_long(tokens: int, max_model_len: int, more: str = "") -> None:
    """Raises BadRequestError; the words are those by which clients recognise a full context."""
    raise BadRequestError(
        f"This model's maximum context length is {max_model_len} tokens; the prompt has {more}{tokens} tokens: "
        "shorten it",
        "prompt",
    )
