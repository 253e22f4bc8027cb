"""What a body of /v1/completions or /v1/chat/completions asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentserving_simulator.tokens import render, tokenize

MAX_CHOICES = 128
DEFAULT_MAX_TOKENS = {"completions": 16, "chat": 256}


class BadRequestError(Exception):
    """What is wrong with the request: (message, parameter, status)."""

    def __init__(self, message: str, param: str, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True, slots=True)
class Asked:
    """`choices` answers of at most `max_tokens` tokens for each of the tokenized `prompts`."""

    prompts: list[list[str]]
    max_tokens: int
    choices: int
    stream: bool
    include_usage: bool


def parse(body: object, kind: str, model: str, max_model_len: int) -> Asked:
    """Raises BadRequestError; what it does not know it leaves alone, as vLLM does."""
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object", "")
    named = body.get("model", model)
    if named != model:
        raise BadRequestError(f"The model `{named}` does not exist; this engine serves {model}", "model", 404)
    prompts = _chat_prompt(body) if kind == "chat" else _prompts(body)
    longest = max(len(prompt) for prompt in prompts)
    if longest >= max_model_len:
        raise BadRequestError(f"the prompt has {longest} tokens, the model takes {max_model_len}", "prompt")
    wanted = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS[kind]
    options = body.get("stream_options")
    return Asked(
        prompts,
        _count(wanted, "max_tokens", max_model_len * 1000),
        _count(body.get("n") or 1, "n", MAX_CHOICES),
        bool(body.get("stream")),
        isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _count(value: object, name: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise BadRequestError(f"{name} must be a whole number from 1 to {most}, not {value!r}", name)
    return value


def _chat_prompt(body: dict[str, Any]) -> list[list[str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise BadRequestError("messages must be a list of objects, and not empty", "messages")
    return [tokenize(render(messages))]


def _prompts(body: dict[str, Any]) -> list[list[str]]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    given = body.get("prompt")
    if not isinstance(given, list) or (given and isinstance(given[0], int)):
        given = [given]
    found = []
    for each in given:
        if isinstance(each, str) and each:
            found.append(tokenize(each))
        elif isinstance(each, list) and each and all(isinstance(token, int) for token in each):
            found.append([str(token) for token in each])
        else:
            raise BadRequestError("prompt must be text, token ids, or a list of either, and not empty", "prompt")
    if not found:
        raise BadRequestError("prompt is missing or empty", "prompt")
    return found
