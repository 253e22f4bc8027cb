"""Which program a request belongs to. Pure; first source found wins, and none is ever an error.

A header is a claim, scoped by the tenant of the credential. The body is looked at only when no header tells.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ID = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
MAX_BODY_LOOK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """`program_id` empty = a program of this one call. `source` is a metric label."""

    program_id: str = ""
    parent_program_id: str = ""
    thread_id: str = ""
    parent_call_ids: tuple[str, ...] = ()
    name: str = ""
    final: bool = False
    source: str = "none"


@dataclass(frozen=True, slots=True)
class _Source:
    """A header that names a program, with the headers that refine it."""

    label: str
    program: str
    parent: str = ""
    # A sub-agent's own id: then the program is the sub-agent, and `program` names its parent.
    child: str = ""
    final: str = ""


SOURCES = (
    _Source("agentserving", "x-agentserving-program-id", parent="x-agentserving-parent-program-id"),
    _Source("llm-d", "x-llm-d-inference-fairness-id"),
    _Source("dynamo", "x-dynamo-session-id", parent="x-dynamo-parent-session-id", final="x-dynamo-session-final"),
    _Source("claude-code", "x-claude-code-session-id", "x-claude-code-parent-agent-id", "x-claude-code-agent-id"),
    _Source("codex", "session-id"),
    _Source("codex", "session_id"),
    _Source("opencode", "x-session-id", parent="x-parent-session-id"),
    _Source("opencode", "x-session-affinity"),
)


def clean(text: str) -> str:
    """An id as the process table takes it: itself, or a hash when it has other characters or is too long."""
    text = text.strip()
    if not text or _ID.fullmatch(text):
        return text
    return "h-" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:40]


def from_headers(headers: Mapping[str, str]) -> Identity | None:
    """The identity that headers (names in lower case) give; None when they are silent."""
    for source in SOURCES:
        program = clean(headers.get(source.program, ""))
        if not program:
            continue
        parent = clean(headers.get(source.parent, "")) if source.parent else ""
        child = clean(headers.get(source.child, "")) if source.child else ""
        if child:
            program, parent = clean(f"{program}/{child}"), clean(f"{program}/{parent}") if parent else program
        elif source.child:
            parent = ""
        return Identity(
            program,
            "" if parent == program else parent,
            headers.get("x-agentserving-thread-id", "")[:128],
            tuple(p.strip() for p in headers.get("x-agentserving-parent-call-ids", "").split(",") if p.strip()),
            headers.get("x-agentserving-program-name", "")[:100],
            headers.get(source.final, "").lower() in ("1", "true", "yes") if source.final else False,
            source.label,
        )
    return None


def from_body(body: bytes) -> Identity:
    """The identity that a JSON body gives; an empty one when it is not JSON, too large, or silent."""
    if len(body) > MAX_BODY_LOOK_BYTES or not any(
        word in body for word in (b'"program_id"', b'"agentic_context"', b'"prompt_cache_key"')
    ):
        return Identity()
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        return Identity()
    if not isinstance(data, dict):
        return Identity()
    extra = data.get("vllm_xargs")
    context = extra.get("agentic_context") if isinstance(extra, dict) else None
    for value, label in (
        (data.get("program_id"), "body"),
        (context, "agentic-context"),
        (data.get("prompt_cache_key"), "prompt-cache-key"),
    ):
        if isinstance(value, str) and value.strip():
            return Identity(clean(value), source=label)
    return Identity()


def identify(headers: Mapping[str, str], body: bytes) -> Identity:
    """Headers first, then the body."""
    return from_headers(headers) or from_body(body)
