"""Errors in the envelopes that clients of OpenAI and of Anthropic expect. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from agentserving.contract import budgets
from agentserving.contract.rates import Rate
from agentserving.programs.headers import BUDGET

from agentserving_gateway.calls import Refusal


@dataclass(eq=False)
class HttpError(Exception):
    """The answer to a refused request. The message says what happened, which field, and what to do.

    `type` is OpenAI's word for the kind, `param` the field of the body, `code` a closed word, `challenge` the value of
    WWW-Authenticate, `rates` what is left of the bounds of the key and its tenant. `refusal`: why someone was not let
    in, for the audit log, with `credential`, the id of the key that they sent, or whose JWT it is.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str = ""
    param: str | None = None
    retry_after_s: float = 0.0
    challenge: str = ""
    rates: tuple[Rate, ...] = ()
    refusal: str = ""
    credential: str = ""
    more_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer, Retry-After (whole seconds, at least 1) among them."""
        found = {"content-type": "application/json", **self.more_headers}
        if self.retry_after_s:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.challenge:
            found["www-authenticate"] = self.challenge
        return found


# google.rpc.Code -> (HTTP status, OpenAI type)
_STATUS = {
    3: (400, "invalid_request_error"),
    4: (504, "server_error"),
    5: (404, "invalid_request_error"),
    6: (409, "invalid_request_error"),
    7: (403, "permission_error"),
    8: (429, "rate_limit_error"),
    9: (409, "invalid_request_error"),
    14: (503, "server_error"),
}
# A 429 or 503 always says when to come back.
DEFAULT_RETRY_S = 1.0


def from_refusal(refusal: Refusal) -> HttpError:
    """The HTTP answer to a refused admission, in the leader's words."""
    status, kind = _STATUS.get(refusal.code, (500, "server_error"))
    retry_after_s = refusal.retry_after_s or (DEFAULT_RETRY_S if status in (429, 503) else 0.0)
    more = {BUDGET: budgets.remaining(refusal.budget)} if refusal.budget is not None else {}
    param = "model" if refusal.reason == "MODEL_NOT_FOUND" else None
    return HttpError(
        status, refusal.message, kind, refusal.reason.lower(), param, retry_after_s=retry_after_s,
        rates=refusal.rates, more_headers=more,
    )  # fmt: skip


# HTTP status -> Anthropic's word for it (its API's errors page).
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_type(status: int) -> str:
    """Anthropic's word for an HTTP status."""
    return _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")


def is_anthropic(path: str) -> bool:
    """Whether a path is of Anthropic's API; all others are OpenAI's."""
    return path.startswith("/v1/messages")


def envelope(error: HttpError, path: str) -> dict[str, object]:
    """The body: OpenAI's envelope, or Anthropic's on /v1/messages."""
    if is_anthropic(path):
        return {"type": "error", "error": {"type": anthropic_type(error.status), "message": error.message}}
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code or None}}
