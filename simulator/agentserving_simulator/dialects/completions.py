"""/v1/completions. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentserving_simulator.answers import asked as reading
from agentserving_simulator.answers.asked import Asked, BadRequestError
from agentserving_simulator.answers.plan import PartKind, Piece, Plan
from agentserving_simulator.dialects.chat import structured
from agentserving_simulator.dialects.chat_answer import DONE, usage_of
from agentserving_simulator.dialects.reply import Answer, Heading, Usage, data
from agentserving_simulator.tokens import tokenize

DEFAULT_MAX_TOKENS = 16


def parse(body: dict[str, Any], max_model_len: int) -> Asked:
    """Raises BadRequestError. Unknown fields are ignored, as in vLLM."""
    options = body.get("stream_options")
    limit = reading.max_tokens(body, ("max_completion_tokens", "max_tokens"), max_model_len)
    return Asked(
        prompts=_prompts(body, max_model_len),
        max_tokens=DEFAULT_MAX_TOKENS if limit is None else limit,
        choices=reading.count(body.get("n") or 1, "n", reading.MAX_CHOICES),
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        cache_salt=str(body.get("cache_salt") or ""),
        ignore_eos=bool(body.get("ignore_eos")),
        stop=reading.stops(body, "stop"),
        schema=structured(body, body.get("response_format")),
    )


def _prompts(body: dict[str, Any], max_model_len: int) -> list[list[str]]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    value = body.get("prompt")
    if not isinstance(value, list) or (value and isinstance(value[0], int)):
        value = [value]
    prompts = []
    for each in value:
        if isinstance(each, str) and each:
            prompts.append(tokenize(reading.checked_prompt(each, max_model_len)))
        elif isinstance(each, list) and each and all(isinstance(token, int) for token in each):
            prompts.append([str(token) for token in each])
        else:
            raise BadRequestError("prompt must be text, token ids, or a list of either, and not empty", "prompt")
    if not prompts:
        raise BadRequestError("prompt is missing or empty", "prompt")
    return prompts


def whole(heading: Heading, asked: Asked, answers: list[Answer], usage: Usage) -> dict[str, Any]:
    """The body of a completion that is not streamed."""
    choices = [_choice(index, answer.text(PartKind.TEXT), answer.reason) for index, answer in enumerate(answers)]
    return {**_head(heading), "choices": choices, "usage": usage_of(usage)}


class CompletionsWriter:
    """Events of a completion that is streamed."""

    def __init__(self, heading: Heading, asked: Asked, plans: list[Plan]) -> None:
        self._asked, self._head = asked, _head(heading)

    def begin(self, usage: Usage) -> Iterator[bytes]:
        """This dialect has no event for it."""
        return iter(())

    def piece(self, choice: int, piece: Piece) -> Iterator[bytes]:
        yield data({**self._head, "choices": [_choice(choice, piece.text, None)]})

    def finished(self, choice: int, reason: str) -> Iterator[bytes]:
        """The chunk with a choice's finish_reason."""
        yield data({**self._head, "choices": [_choice(choice, "", reason)]})

    def end(self, usage: Usage) -> Iterator[bytes]:
        """The usage, if it was asked for."""
        if self._asked.include_usage:
            yield data({**self._head, "choices": [], "usage": usage_of(usage)})
        yield DONE


def _head(heading: Heading) -> dict[str, Any]:
    return {
        "id": f"cmpl-{heading.unique}",
        "object": "text_completion",
        "created": heading.created,
        "model": heading.model,
    }


def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
