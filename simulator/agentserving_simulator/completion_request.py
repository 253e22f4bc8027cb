"""Parses the body of /v1/completions or /v1/chat/completions. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentserving_simulator.tokens import render, tokenize

MAX_CHOICES = 128
DEFAULT_MAX_TOKENS = {"completions": 16, "chat": 256}


class BadRequestError(Exception):
    """The request is invalid: message, parameter and HTTP status."""

    def __init__(self, message: str, param: str, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """`choices` answers of at most `max_tokens` tokens for each of the tokenized `prompts`."""

    prompts: list[list[str]]
    max_tokens: int
    choices: int
    stream: bool
    include_usage: bool
    cache_salt: str = ""


def parse(body: object, kind: str, model: str, max_model_len: int) -> CompletionRequest:
    """Raises BadRequestError. Unknown fields are ignored, as in vLLM."""
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object", "")
    requested = body.get("model", model)
    if requested != model:
        raise BadRequestError(f"The model `{requested}` does not exist; this engine serves {model}", "model", 404)
    prompts = _chat_prompt(body) if kind == "chat" else _prompts(body)
    longest = max(len(prompt) for prompt in prompts)
    if longest >= max_model_len:
        raise BadRequestError(f"the prompt has {longest} tokens, the model takes {max_model_len}", "prompt")
    max_tokens = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS[kind]
    options = body.get("stream_options")
    return CompletionRequest(
        prompts=prompts,
        max_tokens=_count(max_tokens, "max_tokens", max_model_len * 1000),
        choices=_count(body.get("n") or 1, "n", MAX_CHOICES),
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        cache_salt=str(body.get("cache_salt") or ""),
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
    value = body.get("prompt")
    if not isinstance(value, list) or (value and isinstance(value[0], int)):
        value = [value]
    prompts = []
    for each in value:
        if isinstance(each, str) and each:
            prompts.append(tokenize(each))
        elif isinstance(each, list) and each and all(isinstance(token, int) for token in each):
            prompts.append([str(token) for token in each])
        else:
            raise BadRequestError("prompt must be text, token ids, or a list of either, and not empty", "prompt")
    if not prompts:
        raise BadRequestError("prompt is missing or empty", "prompt")
    return prompts
