"""Headers of clients that name a program, besides our own: those of known agents, and those that a cluster adds. Pure.

As text, for flags: `NAME` or `NAME:PARENT`, where the header PARENT names the program's parent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# The label of headers that a cluster adds.
CONFIGURED = "configured"
# The names in use are shorter; HTTP has no limit.
MAX_NAME = 128
NAME = r"^[a-z0-9][-_a-z0-9]*$"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramHeader:
    """A header that names a program, with the headers that refine it; all names in lower case. `label`: whose it is."""

    label: str
    program: str
    parent: str = ""
    # A sub-agent's own id, unless it is that of `program`: then the program is the sub-agent, and its parent is
    # `program`, or the sub-agent of it that `parent` names.
    child: str = ""
    name: str = ""
    final: str = ""


# In the order in which they are looked for.
OF_AGENTS = (
    ProgramHeader(label="llm-d", program="x-llm-d-inference-fairness-id"),
    ProgramHeader(
        label="dynamo",
        program="x-dynamo-session-id",
        parent="x-dynamo-parent-session-id",
        final="x-dynamo-session-final",
    ),
    ProgramHeader(
        label="claude-code",
        program="x-claude-code-session-id",
        parent="x-claude-code-parent-agent-id",
        child="x-claude-code-agent-id",
    ),
    ProgramHeader(
        label="codex",
        program="session-id",
        parent="x-codex-parent-thread-id",
        child="thread-id",
        name="x-openai-subagent",
    ),
    ProgramHeader(label="codex", program="session_id"),
    ProgramHeader(label="opencode", program="x-session-id", parent="x-parent-session-id"),
    ProgramHeader(label="opencode", program="x-session-affinity"),
)
KNOWN = tuple(each.program for each in OF_AGENTS)

# Secrets would become ids that everybody sees; the others are HTTP's, or replaced before a program is looked for.
REFUSED = (
    "authorization", "proxy-authorization", "x-api-key", "api-key", "cookie", "host", "connection", "content-length",
    "content-type", "transfer-encoding", "x-request-id", "x-client-session-id", "x-client-request-id",
    "x-client-content-length", "x-client-address", "x-gateway-destination-endpoint", "x-vllm-priority",
    "x-data-parallel-rank",
)  # fmt: skip
REFUSED_PREFIXES = ("x-agentserving-", "x-envoy-")


def may_name_programs(name: str) -> bool:
    """Whether a cluster may let a header, in lower case, name programs."""
    return name not in REFUSED and not name.startswith(REFUSED_PREFIXES)


def read_program_headers(text: str) -> tuple[ProgramHeader, ...]:
    """What a flag says, entries separated by commas. ValueError with the entry and the reason."""
    found = tuple(_entry(part.strip()) for part in text.split(",") if part.strip())
    if len({each.program for each in found}) < len(found):
        raise ValueError(f"{text!r} has a header twice")
    return found


def _entry(text: str) -> ProgramHeader:
    program, _, parent = text.lower().partition(":")
    for name in (program, parent) if ":" in text else (program,):
        if re.fullmatch(NAME, name) is None or len(name) > MAX_NAME:
            raise ValueError(f"{text!r}: expected NAME or NAME:PARENT, names of headers")
        if not may_name_programs(name):
            raise ValueError(f"{name!r} cannot name programs: it is a credential, or has a meaning of its own")
    return ProgramHeader(label=CONFIGURED, program=program, parent=parent)


def text_of(headers: Iterable[ProgramHeader]) -> str:
    """What `read_program_headers` reads."""
    return ",".join(each.program + (f":{each.parent}" if each.parent else "") for each in headers)


def read_ignored(text: str) -> tuple[str, ...]:
    """Headers of known agents, separated by commas. ValueError for any other."""
    found = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for name in found:
        if name not in KNOWN:
            raise ValueError(f"{name!r} names no program of a known agent; these do: {', '.join(KNOWN)}")
    return found
