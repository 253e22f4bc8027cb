"""Errors as clients of OpenAI and of Anthropic expect them."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(eq=False)
class HttpError(Exception):
    """An answer that is a refusal. `type` is OpenAI's word for the kind."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str = ""
    param: str | None = None
    retry_after_s: float = 0.0


_REASONS = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

# google.rpc.Code -> (HTTP status, OpenAI type)
_STATUS = {
    3: (400, "invalid_request_error"),
    4: (504, "server_error"),
    5: (404, "invalid_request_error"),
    6: (409, "invalid_request_error"),
    8: (429, "rate_limit_error"),
    9: (409, "invalid_request_error"),
    14: (503, "server_error"),
}


def from_admission(code: int, reason: str, message: str, retry_after_s: float) -> HttpError:
    """The HTTP answer to a refused admission."""
    status, kind = _STATUS.get(code, (500, "server_error"))
    return HttpError(status, message, kind, reason.lower(), retry_after_s=retry_after_s)


# HTTP status -> Anthropic's word for it (its API's errors page).
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _anthropic_type(status: int) -> str:
    return _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")


def render(error: HttpError, path: str, *, close: bool) -> bytes:
    """The whole response: OpenAI's envelope, or Anthropic's on /v1/messages."""
    if path.startswith("/v1/messages"):
        document: dict[str, object] = {
            "type": "error",
            "error": {"type": _anthropic_type(error.status), "message": error.message},
        }
    else:
        document = {
            "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code or None}
        }
    body = json.dumps(document).encode()
    lines = [
        f"HTTP/1.1 {error.status} {_REASONS.get(error.status, 'Error')}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    if error.retry_after_s:
        lines.append(f"retry-after: {max(1, round(error.retry_after_s))}")
    if close:
        lines.append("connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
