"""/v1/chat/completions: its answers, as vLLM gives them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentserving_simulator.answers.asked import Asked
from agentserving_simulator.answers.plan import PartKind, Piece, Plan
from agentserving_simulator.dialects.reply import Answer, Heading, Usage, data

DONE = b"data: [DONE]\n\n"


def whole(heading: Heading, asked: Asked, answers: list[Answer], usage: Usage) -> dict[str, Any]:
    """A chat completion."""
    choices = [
        {"index": index, "message": _message(heading, index, answer), "finish_reason": finish_reason(answer)}
        for index, answer in enumerate(answers)
    ]
    return {**_head(heading, "chat.completion"), "choices": choices, "usage": usage_of(usage)}


class ChatWriter:
    """Chunks of a chat completion."""

    def __init__(self, heading: Heading, asked: Asked, plans: list[Plan]) -> None:
        self._heading, self._asked = heading, asked
        self._head = _head(heading, "chat.completion.chunk")
        self._answers = [Answer(plan) for plan in plans]

    def begin(self, usage: Usage) -> Iterator[bytes]:
        """Nothing: the role comes with the first token."""
        return iter(())

    def piece(self, choice: int, piece: Piece) -> Iterator[bytes]:
        """One chunk; the first of a part says what it is (role, id and name of a tool call)."""
        answer = self._answers[choice]
        delta: dict[str, Any] = {} if answer.texts else {"role": "assistant", "content": ""}
        begins = piece.part not in answer.texts
        answer.add(piece)
        part = answer.plan.parts[piece.part]
        if part.kind is PartKind.CALL:
            index = _call_index(answer, piece.part)
            if begins:
                call = _call(self._heading.call_id(choice, piece.part), part.name, "")
                delta["tool_calls"] = [{"index": index, **call}]
            elif piece.text:
                delta["tool_calls"] = [{"index": index, "function": {"arguments": piece.text}}]
        elif piece.text:
            delta["content" if part.kind is PartKind.TEXT else "reasoning"] = piece.text
        if delta:
            yield self._chunk(choice, delta, None)

    def finished(self, choice: int, reason: str) -> Iterator[bytes]:
        """The chunk with a choice's finish_reason."""
        answer = self._answers[choice]
        answer.reason = reason
        yield self._chunk(choice, {"content": ""} if not answer.plan.calls_tools else {}, finish_reason(answer))

    def end(self, usage: Usage) -> Iterator[bytes]:
        """The usage, if it was asked for."""
        if self._asked.include_usage:
            yield data({**self._head, "choices": [], "usage": usage_of(usage)})
        yield DONE

    def _chunk(self, choice: int, delta: dict[str, Any], reason: str | None) -> bytes:
        return data({**self._head, "choices": [{"index": choice, "delta": delta, "finish_reason": reason}]})


def finish_reason(answer: Answer) -> str:
    """OpenAI's word for the end of an answer; "abort" is vLLM's."""
    return "tool_calls" if answer.called else answer.reason


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _head(heading: Heading, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{heading.unique}", "object": kind, "created": heading.created, "model": heading.model}


def _message(heading: Heading, choice: int, answer: Answer) -> dict[str, Any]:
    calls = [
        _call(heading.call_id(choice, number), part.name, text)
        for number, part, text in answer.parts()
        if part.kind is PartKind.CALL
    ]
    text = answer.text(PartKind.TEXT)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text}
    if calls:
        message["tool_calls"] = calls
    if reasoning := answer.text(PartKind.REASONING):
        message["reasoning"] = reasoning
    return message


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_index(answer: Answer, part: int) -> int:
    """A call's number among the calls."""
    return sum(each.kind is PartKind.CALL for each in answer.plan.parts[:part])
