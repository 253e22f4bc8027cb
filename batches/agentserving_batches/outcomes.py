"""What an answer means for its line: a result, or another try. And the lines that output and error files have. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from agentserving.transport.backoff import Backoff

from agentserving_batches.values import LineResult, Status

# An answer that says when to come back, or a gateway that cannot be reached, says nothing of the line: it is tried
# until the batch expires. Of another failure the line may be the cause, and each try may cost an engine.
MAX_FAILURES = 4
_COME_BACK = frozenset({429, 503})
_FAILURES = frozenset({408, 425, 500, 502, 503, 504})
BACKOFF = Backoff(first_s=0.5, max_s=30.0)
# A Retry-After beyond this is asked again before: an engine may be free earlier.
MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Of the gateway. `status` 0: there was none, and `reason` says why; then `was_sent` is whether the request left.

    `retry_after_s`: 0 = it does not say. `request_id`: the call's, for `agentserving trace`.
    """

    status: int = 0
    body: bytes = b""
    request_id: str = ""
    retry_after_s: float = 0.0
    reason: str = ""
    was_sent: bool = True
    # Another try would end as this one.
    is_final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """Of one line in this process. `failures`: those of which the line may be the cause."""

    number: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Try again after this time."""

    delay_s: float
    tries: Tries


def next_try(answer: Answer, tries: Tries) -> Retry | None:
    """None: the answer is the result."""
    if answer.is_final:
        return None
    comes_back = answer.status in _COME_BACK and answer.retry_after_s > 0
    is_free = comes_back or answer.status == 429 or not answer.was_sent
    if not is_free and answer.status and answer.status not in _FAILURES:
        return None
    failures = tries.failures + (not is_free)
    if failures >= MAX_FAILURES:
        return None
    made = Tries(number=tries.number + 1, failures=failures)
    delay_s = min(answer.retry_after_s, MAX_WAIT_S) if comes_back else BACKOFF.delay_s(made.number)
    return Retry(delay_s=delay_s, tries=made)


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Written(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


_encoder = msgspec.json.Encoder()


def result_of(answer: Answer, *, batch_id: str, number: int, custom_id: str) -> LineResult:
    """The line of a finished call: of the output file for a status of 200."""
    written = _Written(id=_id(batch_id, number), custom_id=custom_id, response=None, error=None)
    if answer.status:
        written.response = _Response(
            status_code=answer.status, request_id=answer.request_id, body=msgspec.Raw(_one_line(answer.body))
        )
    else:
        written.error = _Error(code="call_failed", message=answer.reason)
    return LineResult(number=number, text=_encoder.encode(written) + b"\n", succeeded=answer.status == 200)


_UNFINISHED = {
    Status.EXPIRED: _Error("batch_expired", "This request could not be executed before the completion window expired."),
    Status.CANCELLED: _Error("batch_cancelled", "This request was not executed before the batch was cancelled."),
}


def unfinished(ending: Status, *, batch_id: str, number: int, custom_id: str) -> bytes:
    """The line of the error file for a request without a result."""
    error = _UNFINISHED.get(ending, _Error("call_failed", "This request has no result."))
    return _encoder.encode(_Written(_id(batch_id, number), custom_id, None, error)) + b"\n"


def _id(batch_id: str, number: int) -> str:
    """The same whenever a line is written."""
    return f"batch_req_{batch_id.removeprefix('batch_')}_{number}"


def _one_line(body: bytes) -> bytes:
    """JSON without line ends between its parts; text that is not JSON becomes a JSON string."""
    try:
        return msgspec.json.format(body, indent=-1)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _encoder.encode(body.decode("utf-8", "replace"))
