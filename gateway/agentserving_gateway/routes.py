"""The routes of the front, and what becomes of a request on each. Pure.

Envoy's route table is generated from these, and the picker reads the kind of a request from the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from agentserving.contract.engine_http import COUNTED, RESPONSES, SCORED
from agentserving.contract.engine_http import SHOWN as SHOWN_BY_ENGINES
from agentserving.contract.ids import ProgramId


class Kind(Enum):
    """What becomes of a request."""

    # A call of a program, with admission and ticket.
    CALL = "call"
    # Generates nothing: any ready engine that serves the model answers.
    READ = "read"
    # A stored response (OpenAI's Responses API): the engine that has it answers.
    RESPONSE = "response"
    # Files and batches (OpenAI's Batch API): the batch service answers, where the front has one.
    BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`path` is a regular expression for the whole path (RE2); `shown` is its spelling in errors and metrics.

    `answer_s`: how long an engine may take for its answer; 0 = as long as it likes.
    """

    kind: Kind
    methods: tuple[str, ...]
    path: str
    shown: str
    answer_s: float = 0.0


def _exact(kind: Kind, path: str, *, answer_s: float = 0.0, method: str = "POST") -> Route:
    return Route(kind=kind, methods=(method,), path=re.escape(path), shown=path, answer_s=answer_s)


# Of a stored response; no dots in front, which would be another path.
_ID = r"[A-Za-z0-9_:-][A-Za-z0-9._:-]*"
ROUTES = (
    *(_exact(Kind.CALL, path) for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")),
    # Claude Code counts before it calls.
    *(_exact(Kind.READ, path, answer_s=5.0) for path in COUNTED),
    *(_exact(Kind.READ, path, answer_s=60.0) for path in SCORED),
    *(_exact(Kind.READ, path, answer_s=5.0, method="GET") for path in SHOWN_BY_ENGINES),
    Route(
        kind=Kind.RESPONSE,
        methods=("GET", "DELETE"),
        path=rf"/v1/responses/{_ID}",
        shown="/v1/responses/{id}",
    ),
    Route(
        kind=Kind.RESPONSE,
        methods=("POST",),
        path=rf"/v1/responses/{_ID}/cancel",
        shown="/v1/responses/{id}/cancel",
        answer_s=60.0,
    ),
)
BATCHES = "/v1/batches"
# The front has these only with a batch service.
BATCH_ROUTES = (
    *(
        _exact(Kind.BATCH, path, answer_s=60.0, method=method)
        for path in ("/v1/files", BATCHES)
        for method in ("POST", "GET")
    ),
    Route(kind=Kind.BATCH, methods=("GET", "DELETE"), path=rf"/v1/files/{_ID}", shown="/v1/files/{id}", answer_s=60.0),
    Route(kind=Kind.BATCH, methods=("GET",), path=rf"/v1/files/{_ID}/content", shown="/v1/files/{id}/content"),
    Route(kind=Kind.BATCH, methods=("GET",), path=rf"{BATCHES}/{_ID}", shown="/v1/batches/{id}", answer_s=60.0),
    Route(
        kind=Kind.BATCH,
        methods=("POST",),
        path=rf"{BATCHES}/{_ID}/cancel",
        shown="/v1/batches/{id}/cancel",
        answer_s=60.0,
    ),
)
# A base URL that names a program, for clients that can set nothing but a URL: /p/{program}/v1/... No dot in front.
PROGRAM_PREFIX = r"/p/[A-Za-z0-9_:@-][A-Za-z0-9._:@-]*"
# Answered by the picker from the lists of all engines; an id of a model may contain slashes.
MODELS = r"/v1/models(/[A-Za-z0-9._:/%@+-]+)?"
# For load balancers and people: answered by Envoy itself.
HEALTH = r"/|/health"

SHOWN = (*dict.fromkeys(route.shown for route in ROUTES), "/v1/models", "/v1/models/{id}")

_PROGRAM = re.compile(PROGRAM_PREFIX + "(?=/)")
_PATTERNS = tuple((re.compile(route.path), route) for route in ROUTES)
_BATCH_PATTERNS = tuple((re.compile(route.path), route) for route in BATCH_ROUTES)


def response_id_of(path: str) -> str:
    return path.removeprefix(RESPONSES).split("/")[1]


def is_response_id(text: object) -> bool:
    """False for anything that cannot stand in a path."""
    return isinstance(text, str) and len(text) <= 256 and re.fullmatch(_ID, text) is not None


def split_program(path: str) -> tuple[ProgramId, str]:
    """The program that a path begins with, "" for none, and the path without it."""
    found = _PROGRAM.match(path)
    return (ProgramId(found[0].removeprefix("/p/")), path[found.end() :]) if found else (ProgramId(""), path)


def route_of(method: str, path: str) -> Route | None:
    """The route of a request; `path` without its query. None for what Envoy never sends to the picker."""
    return _found(method, path, (*_PATTERNS, *_BATCH_PATTERNS))


def _found(method: str, path: str, patterns: Iterable[tuple[re.Pattern[str], Route]]) -> Route | None:
    for pattern, route in patterns:
        if method in route.methods and pattern.fullmatch(path):
            return route
    return None


def route_under(method: str, path: str) -> Route | None:
    """The route to an engine, below any prefix: other gateways may put one before the path, and cut it off after the
    picker."""
    while path:
        found = _found(method, path, _PATTERNS)
        if found is not None:
            return found
        slash = path.find("/", 1)
        path = path[slash:] if slash > 0 else ""
    return None
