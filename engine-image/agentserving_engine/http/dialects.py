"""How the APIs that vLLM serves spell an error: as a JSON document, and as an event within a stream. Pure.

| API | error in a stream | seen in |
|---|---|---|
| completions, chat | `data: {"error": {...}}`, then `data: [DONE]` | vLLM's generators; openai-python's `Stream` |
| responses | `response.failed` with the response; `error` before there is one | OpenAI's streaming events; Codex |
| messages | `event: error`, no `message_stop` | Anthropic's streaming errors; vLLM's converter |
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

from agentserving.contract.engine_http import RESPONSES


class Dialect(Enum):
    """The API of a route."""

    OPENAI = "completions and chat completions"
    RESPONSES = "responses"
    MESSAGES = "messages"


# The routes that generate. The batch and SageMaker's route read the same fields of the body.
ROUTES = {
    "/v1/chat/completions": Dialect.OPENAI,
    "/v1/chat/completions/batch": Dialect.OPENAI,
    "/v1/completions": Dialect.OPENAI,
    "/invocations": Dialect.OPENAI,
    RESPONSES: Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
}
# HTTP status -> Anthropic's type (its API's errors page).
_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def dialect_of(path: str) -> Dialect | None:
    """The dialect of a route; None for routes that never generate."""
    found = ROUTES.get(path)
    if found is None and path.startswith(RESPONSES + "/"):
        # GET with `stream=true` replays a response that runs in the background.
        return Dialect.RESPONSES
    return found


def error_document(dialect: Dialect, status: int, message: str, *, param: str | None, code: str | None) -> bytes:
    """The body of a refusal."""
    if dialect is Dialect.MESSAGES:
        details = {"details": {"error_code": code}} if code else {}
        return _json({"type": "error", "error": {"type": _anthropic_type(status), "message": message, **details}})
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(dialect: Dialect, message: str, *, first: bytes, last: bytes) -> bytes:
    """The event that ends a broken stream; `first` and `last` are the first and last chunk that the client has."""
    if dialect is Dialect.MESSAGES:
        return b"event: error\ndata: " + error_document(dialect, 500, message, param=None, code=None) + b"\n\n"
    if dialect is Dialect.RESPONSES:
        return _response_event(message, "server_error", None, first, last)
    return _openai_event(error_document(dialect, 500, message, param=None, code="engine_failed"))


def translated_error(dialect: Dialect, status: int, document: bytes) -> bytes:
    """An error document that comes after the stream was opened, as an event. Unreadable ones become a generic error."""
    try:
        found = json.loads(document)
    except ValueError:
        found = None
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        error = {"message": f"the engine answered with status {status}", "type": "server_error", "code": status}
    if dialect is Dialect.MESSAGES:
        return b"event: error\ndata: " + _json({"type": "error", "error": error}) + b"\n\n"
    if dialect is Dialect.RESPONSES:
        return _response_event(error.get("message"), error.get("code"), error.get("param"), b"", b"")
    return _openai_event(_json({"error": error}))


def _anthropic_type(status: int) -> str:
    return _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")


def _openai_event(document: bytes) -> bytes:
    return b"data: " + document + b"\n\ndata: [DONE]\n\n"


def _response_event(message: object, code: object, param: object, first: bytes, last: bytes) -> bytes:
    number = _data(last).get("sequence_number")
    number = number + 1 if isinstance(number, int) else 0
    response = _data(first).get("response")
    if isinstance(response, dict):
        failed = {**response, "status": "failed", "error": {"code": "server_error", "message": message}}
        event: dict[str, Any] = {"type": "response.failed", "sequence_number": number, "response": failed}
    else:
        text = None if code is None else str(code)
        event = {"type": "error", "code": text, "message": message, "param": param, "sequence_number": number}
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), _json(event))


def _data(chunk: bytes) -> dict[str, Any]:
    """The document of the last event in a chunk; {} if there is no whole one."""
    for line in reversed(chunk.split(b"\n")):
        if line.startswith(b"data:"):
            try:
                found = json.loads(line[5:])
            except ValueError:
                return {}
            return found if isinstance(found, dict) else {}
    return {}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
