"""A conversation of any API as one prompt, to which the answer is appended. Pure.

An answer that comes back inside the next prompt has the same tokens, so that the prefix cache finds a program's earlier
calls. That needs a space before each part of an answer (a space always begins a token) and one spelling of arguments:
clients send back what they have parsed. Reasoning is left out, as chat templates do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

ASSISTANT = "assistant"
# Before a call's name and after its arguments, in the form of Hermes' templates.
CALL_BEGINS, CALL_ENDS = " <tool_call>", " </tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` as JSON in `spelled`'s spelling."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A message; `extra` is what else of it the model sees, as text."""

    role: str
    text: str
    calls: tuple[ToolCall, ...] = ()
    extra: str = ""


def spelled(arguments: object) -> str:
    """The one spelling of a call's arguments: a JSON text of a client, or what it was parsed into."""
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError):
            return str(arguments)
    return json.dumps(arguments, ensure_ascii=False)


def call_text(name: str, arguments: str) -> str:
    """A call as the model writes it."""
    return f"{CALL_BEGINS} {name} {arguments}{CALL_ENDS}"


def render(turns: Iterable[Turn], tools: Sequence[object] = ()) -> str:
    """The prompt. Tools come first, where changes of the conversation leave their KV valid."""
    lines = [f"tools: {msgspec.json.encode(tools).decode()}\n"] if tools else []
    for turn in turns:
        text = turn.text
        if turn.role == ASSISTANT:
            text = _spaced(text) + "".join(call_text(call.name, call.arguments) for call in turn.calls)
        lines.append(f"{turn.role}: {text}{turn.extra}\n")
    return "".join(lines) + f"{ASSISTANT}: "


def turns_with_calls(turns: Iterable[Turn]) -> int:
    """How many turns of the assistant with tool calls end the conversation.

    Results do not end the series, nor what agents add as a user's message beside them; an answer without calls does.
    """
    count = 0
    for turn in turns:
        if turn.role == ASSISTANT:
            count = count + 1 if turn.calls else 0
    return count


def answers_since(turns: Sequence[Turn], words: str) -> int | None:
    """How many answers there are since the user last said `words`; "" = since the user's first message.

    None if the user has not said them.
    """
    places = [index for index, turn in enumerate(turns) if turn.role == "user" and words in turn.text]
    if not places:
        return None
    return sum(turn.role == ASSISTANT for turn in turns[places[-1 if words else 0] :])


def content_text(content: object) -> str:
    """Text of a message's content: a string, or parts of which images count as one word, not as their bytes."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(_part_text(part) for part in content) if isinstance(content, list) else json.dumps(content)


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return json.dumps(part)
    text = part.get("text")
    if isinstance(text, str):
        return text
    return attachment(part)


def attachment(part: Mapping[str, Any]) -> str:
    """A part that is no text: its kind and a digest, so that equal images are equal tokens."""
    digest = hashlib.blake2b(msgspec.json.encode(part), digest_size=4).hexdigest()
    return f" <{part.get('type', 'part')} {digest}>"


def _spaced(text: str) -> str:
    return text if not text or text[0].isspace() else f" {text}"
