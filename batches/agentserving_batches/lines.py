"""What a line of an input file may say. Pure.

{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [...]}}
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from agentserving_batches.limits import MAX_CUSTOM_ID, MAX_LINE_BYTES, MAX_PROBLEMS
from agentserving_batches.values import Line, Problem

# What the front serves of the endpoints of OpenAI's Batch API.
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


class _Body(msgspec.Struct):
    model: str
    stream: object = None


class _Request(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = ""


_request_decoder = msgspec.json.Decoder(_Request)
_body_decoder = msgspec.json.Decoder(_Body)


@dataclass(slots=True, kw_only=True)
class Validated:
    """`models`: each with the first line that names it. `problems`: MAX_PROBLEMS at most; with any, there are no
    calls."""

    lines: list[Line] = field(default_factory=list)
    models: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class _ProblemError(Exception):
    def __init__(self, code: str, message: str, param: str = "") -> None:
        super().__init__(message)
        self.code, self.param = code, param


def body_of(line: bytes) -> bytes:
    """The body of a valid line, as it was written."""
    return bytes(_request_decoder.decode(line).body)


def validate(content: Iterable[bytes], endpoint: str, max_lines: int) -> Validated:
    """Reads the lines of a file, each with its end. Empty ones are skipped."""
    found = Validated()
    ids: dict[str, int] = {}
    for number, offset, line in _numbered(content):
        if len(found.problems) >= MAX_PROBLEMS:
            break
        if len(ids) >= max_lines:
            found.problems.append(
                Problem(code="too_many_lines", line=number, message=f"a batch has at most {max_lines} lines: split it")
            )
            break
        try:
            custom_id, model = _read(line, endpoint, ids)
        except _ProblemError as error:
            found.problems.append(Problem(code=error.code, message=str(error), line=number, param=error.param))
            continue
        ids[custom_id] = number
        found.models.setdefault(model, number)
        found.lines.append(Line(number=number, custom_id=custom_id, offset=offset, size_bytes=len(line)))
    if not found.lines and not found.problems:
        found.problems.append(
            Problem(code="empty_file", message="the input file has no lines: write one request a line")
        )
    return found


def unknown_models(found: Validated, served: Collection[str]) -> list[Problem]:
    """A problem for each model that no engine serves."""
    shown = ", ".join(sorted(served)) or "none"
    return [
        Problem(
            code="model_not_found", line=number, param="body.model",
            message=f"no engine serves {model[:100]!r}; served: {shown}",
        )
        for model, number in found.models.items()
        if model not in served
    ][:MAX_PROBLEMS]  # fmt: skip


def _numbered(content: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    for number, line in enumerate(content, 1):
        if line.strip():
            yield number, offset, line
        offset += len(line)


def _read(line: bytes, endpoint: str, ids: dict[str, int]) -> tuple[str, str]:
    """(custom_id, model) of a line. _ProblemError says what is wrong with it."""
    if len(line) > MAX_LINE_BYTES:
        raise _ProblemError("line_too_long", f"{len(line)} bytes; a line has at most {MAX_LINE_BYTES}")
    try:
        request = _request_decoder.decode(line)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise _ProblemError("invalid_line", f"{error}: a line has custom_id, method, url and body") from None
    except msgspec.DecodeError as error:
        raise _ProblemError("invalid_json_line", f"not JSON: {error}") from None
    if not request.custom_id or len(request.custom_id) > MAX_CUSTOM_ID:
        raise _ProblemError("invalid_custom_id", f"custom_id: 1 to {MAX_CUSTOM_ID} characters", "custom_id")
    if request.custom_id in ids:
        before = ids[request.custom_id]
        raise _ProblemError(
            "duplicate_custom_id", f"custom_id is that of line {before}: results need one each", "custom_id"
        )
    if request.method.upper() != "POST":
        raise _ProblemError("invalid_method", f"method is {request.method[:20]!r}, and must be POST", "method")
    if request.url != endpoint:
        raise _ProblemError("mismatched_url", f"url is {request.url[:100]!r}; the batch is for {endpoint}", "url")
    try:
        body = _body_decoder.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _ProblemError("invalid_body", f"body: {error}; it is an object with a model", "body") from None
    if body.stream:
        raise _ProblemError("stream_not_allowed", "a batch writes whole answers: remove stream", "body.stream")
    return request.custom_id, body.model
