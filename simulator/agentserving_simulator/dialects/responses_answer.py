"""/v1/responses: its answers, as OpenAI documents them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentserving_simulator.answers.asked import Asked
from agentserving_simulator.answers.plan import Part, PartKind, Piece, Plan
from agentserving_simulator.dialects.reply import LENGTH, Answer, Heading, Usage, named

_PREFIX = {PartKind.TEXT: "msg", PartKind.CALL: "fc", PartKind.REASONING: "rs"}


def whole(heading: Heading, asked: Asked, answers: list[Answer], usage: Usage) -> dict[str, Any]:
    """A response that has ended."""
    (answer,) = answers
    cut = answer.reason == LENGTH
    last = max(answer.texts, default=0)
    output = [
        _item(heading, number, part, text, "incomplete" if cut and number == last else "completed")
        for number, part, text in answer.parts()
    ]
    return {
        **_response(heading, asked, "incomplete" if cut else "completed"),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": _usage(usage),
    }


class ResponsesWriter:
    """Events of a response, numbered."""

    def __init__(self, heading: Heading, asked: Asked, plans: list[Plan]) -> None:
        self._heading, self._asked, self._answer = heading, asked, Answer(plans[0])
        self._number = -1

    def begin(self, usage: Usage) -> Iterator[bytes]:
        """The response, still empty."""
        response = _response(self._heading, self._asked, "in_progress")
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def piece(self, choice: int, piece: Piece) -> Iterator[bytes]:
        """A delta, and before the first one of an item its beginning."""
        part = self._answer.plan.parts[piece.part]
        if piece.part not in self._answer.texts:
            yield from self._item_ends("completed")
            yield from self._item_begins(piece.part, part)
        self._answer.add(piece)
        if not piece.text:
            return
        place = self._place(piece.part)
        match part.kind:
            case PartKind.CALL:
                yield self._event("response.function_call_arguments.delta", **place, delta=piece.text)
            case PartKind.TEXT:
                yield self._event(
                    "response.output_text.delta", **place, content_index=0, delta=piece.text, logprobs=[]
                )  # fmt: skip
            case PartKind.REASONING:
                yield self._event("response.reasoning_text.delta", **place, content_index=0, delta=piece.text)

    def finished(self, choice: int, reason: str) -> Iterator[bytes]:
        """The end of the last item."""
        self._answer.reason = reason
        yield from self._item_ends("incomplete" if reason == LENGTH else "completed")

    def end(self, usage: Usage) -> Iterator[bytes]:
        """The whole response."""
        response = whole(self._heading, self._asked, [self._answer], usage)
        yield self._event(f"response.{response['status']}", response=response)

    def _item_begins(self, number: int, part: Part) -> Iterator[bytes]:
        item = _item(self._heading, number, part, None, "in_progress")
        yield self._event("response.output_item.added", output_index=number, item=item)
        if part.kind is not PartKind.CALL:
            content = _content(part.kind, "")
            yield self._event("response.content_part.added", **self._place(number), content_index=0, part=content)

    def _item_ends(self, status: str) -> Iterator[bytes]:
        if not self._answer.texts:
            return
        number, part, text = self._answer.parts()[-1]
        place = self._place(number)
        if part.kind is PartKind.CALL:
            yield self._event("response.function_call_arguments.done", **place, name=part.name, arguments=text)
        else:
            is_text = part.kind is PartKind.TEXT
            kind = "output_text" if is_text else "reasoning_text"
            more: dict[str, Any] = {"logprobs": []} if is_text else {}
            yield self._event(f"response.{kind}.done", **place, content_index=0, text=text, **more)
            content = _content(part.kind, text)
            yield self._event("response.content_part.done", **place, content_index=0, part=content)
        item = _item(self._heading, number, part, text, status)
        yield self._event("response.output_item.done", output_index=number, item=item)

    def _place(self, number: int) -> dict[str, Any]:
        part = self._answer.plan.parts[number]
        return {"item_id": _item_id(self._heading, number, part.kind), "output_index": number}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return named({"type": kind, "sequence_number": self._number, **fields})


def _response(heading: Heading, asked: Asked, status: str) -> dict[str, Any]:
    return {
        "id": heading.response_id or f"resp_{heading.unique}",
        "object": "response",
        "created_at": heading.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": heading.model,
        "output": [],
        "usage": None,
        "background": False,
        **asked.echoed,
    }


def _item_id(heading: Heading, number: int, kind: PartKind) -> str:
    return f"{_PREFIX[kind]}_{heading.unique}{number:02x}"


def _item(heading: Heading, number: int, part: Part, text: str | None, status: str) -> dict[str, Any]:
    """An item of the output; `text` None: nothing of it yet."""
    item: dict[str, Any] = {"id": _item_id(heading, number, part.kind), "status": status}
    match part.kind:
        case PartKind.CALL:
            call_id = heading.call_id(0, number)
            named_in = {"namespace": part.namespace} if part.namespace else {}
            call = {"type": "function_call", "call_id": call_id, "name": part.name, "arguments": text or ""}
            return {**item, **call, **named_in}
        case PartKind.TEXT:
            content = [] if text is None else [_content(part.kind, text)]
            return {**item, "type": "message", "role": "assistant", "content": content}
        case PartKind.REASONING:
            content = [] if text is None else [_content(part.kind, text)]
            return {**item, "type": "reasoning", "summary": [], "content": content}


def _content(kind: PartKind, text: str) -> dict[str, Any]:
    if kind is PartKind.REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }
