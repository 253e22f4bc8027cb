"""/v1/messages: its answers, as Anthropic documents them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agentserving_simulator.answers.asked import Asked
from agentserving_simulator.answers.plan import Part, PartKind, Piece, Plan
from agentserving_simulator.dialects.reply import LENGTH, STOPPED, Answer, Heading, Usage, named


def whole(heading: Heading, asked: Asked, answers: list[Answer], usage: Usage) -> dict[str, Any]:
    """The body of a message that is not streamed."""
    (answer,) = answers
    content = [_block(heading, number, part, text) for number, part, text in answer.parts()]
    return {**_message(heading, usage), "content": content, **_stopped(answer)}


class MessagesWriter:
    """Events of a message that is streamed."""

    def __init__(self, heading: Heading, asked: Asked, plans: list[Plan]) -> None:
        self._heading, self._answer = heading, Answer(plans[0])

    def begin(self, usage: Usage) -> Iterator[bytes]:
        """The message, still empty."""
        yield named({"type": "message_start", "message": _message(self._heading, usage)})

    def piece(self, choice: int, piece: Piece) -> Iterator[bytes]:
        """A delta, and the start of a block before the first one."""
        part = self._answer.plan.parts[piece.part]
        if piece.part not in self._answer.texts:
            yield from self._block_ends()
            block = _block(self._heading, piece.part, part, "")
            yield named({"type": "content_block_start", "index": piece.part, "content_block": block})
        self._answer.add(piece)
        if piece.text:
            delta = _delta(part.kind, piece.text)
            yield named({"type": "content_block_delta", "index": piece.part, "delta": delta})

    def finished(self, choice: int, reason: str) -> Iterator[bytes]:
        """The end of the last block."""
        self._answer.reason = reason
        yield from self._block_ends()

    def end(self, usage: Usage) -> Iterator[bytes]:
        """Why it ended, and the usage."""
        yield named({"type": "message_delta", "delta": _stopped(self._answer), "usage": _usage(usage)})
        yield named({"type": "message_stop"})

    def _block_ends(self) -> Iterator[bytes]:
        if not self._answer.texts:
            return
        number = max(self._answer.texts)
        if self._answer.plan.parts[number].kind is PartKind.REASONING:
            delta = {"type": "signature_delta", "signature": _signature(self._heading)}
            yield named({"type": "content_block_delta", "index": number, "delta": delta})
        yield named({"type": "content_block_stop", "index": number})


def _message(heading: Heading, usage: Usage) -> dict[str, Any]:
    return {
        "id": f"msg_{heading.unique}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": heading.model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(usage),
    }


def _block(heading: Heading, number: int, part: Part, text: str) -> dict[str, Any]:
    match part.kind:
        case PartKind.TEXT:
            return {"type": "text", "text": text}
        case PartKind.REASONING:
            return {"type": "thinking", "thinking": text, "signature": _signature(heading) if text else ""}
        case PartKind.CALL:
            # Arguments that are cut off by max_tokens are not JSON.
            given = json.loads(text) if text == part.text else {}
            return {"type": "tool_use", "id": heading.call_id(0, number), "name": part.name, "input": given}


def _delta(kind: PartKind, text: str) -> dict[str, Any]:
    match kind:
        case PartKind.TEXT:
            return {"type": "text_delta", "text": text}
        case PartKind.REASONING:
            return {"type": "thinking_delta", "thinking": text}
        case PartKind.CALL:
            return {"type": "input_json_delta", "partial_json": text}


def _signature(heading: Heading) -> str:
    return heading.unique


def _stopped(answer: Answer) -> dict[str, Any]:
    """Of a call that was cancelled there is no reason, as in vLLM."""
    sequence = answer.plan.stop if answer.reason == STOPPED else ""
    reasons = {STOPPED: "stop_sequence" if sequence else "end_turn", LENGTH: "max_tokens"}
    reason = "tool_use" if answer.called else reasons.get(answer.reason)
    return {"stop_reason": reason, "stop_sequence": sequence or None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's input tokens are those that were not in the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }
