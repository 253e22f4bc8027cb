"""Which program a request belongs to. Pure; the first source found wins, and none is ever an error.

The program of a URL (/p/{program}/...) stands for a whole run of a command: what an agent's own headers call a session
is a thread of it, and their sub-agents are its children.

A root that another source names may have a parent by our own header: that of the workflow it was started in.

A header is a claim, scoped by the tenant of the credential. The body counts only when no header names a program. Our
own header names, and what an id or a name may be, are those of the client library (agentserving.programs.headers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agentserving.contract.ids import ProgramId
from agentserving.contract.program_headers import OF_AGENTS, ProgramHeader
from agentserving.programs import headers as ours

from agentserving_gateway.body import Body

_NONE = ProgramId("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """`program_id` empty = a program of this one call. `source` is a metric label."""

    program_id: ProgramId = _NONE
    parent_program_id: ProgramId = _NONE
    thread_id: str = ""
    parent_call_ids: tuple[str, ...] = ()
    name: str = ""
    final: bool = False
    source: str = "none"


OWN = "agentserving"


def sources(added: Iterable[ProgramHeader] = (), ignored: Iterable[str] = ()) -> tuple[ProgramHeader, ...]:
    """Headers that name programs, in the order in which they are looked for: our own, those that a cluster adds, and
    those of known agents without `ignored`."""
    own = ProgramHeader(label=OWN, program=ours.PROGRAM_ID, parent=ours.PARENT_PROGRAM_ID, final=ours.FINAL)
    left_out = set(ignored)
    return (own, *added, *(each for each in OF_AGENTS if each.program not in left_out))


SOURCES = sources()


def headers_of(sources_: Iterable[ProgramHeader]) -> tuple[str, ...]:
    """Every header that `from_head` reads."""
    read = ((each.program, each.parent, each.child, each.name, each.final) for each in sources_)
    return tuple(dict.fromkeys(name for names in read for name in (*names, *ours.SENT) if name))


HEADERS = headers_of(SOURCES)


def clean(text: str) -> ProgramId:
    """An id as the process table takes it: itself, or a hash when it has other characters or is too long."""
    text = text.strip()
    return ProgramId(ours.thread_id(text) if text else "")


def _thread(text: str) -> str:
    """Any text of at most MAX_NAME_BYTES; a longer one is hashed, so that two of them stay two."""
    return text if len(text.encode()) <= ours.MAX_NAME_BYTES else ours.thread_id(text)


def from_head(
    headers: Mapping[str, str], program: ProgramId = _NONE, sources_: Iterable[ProgramHeader] = SOURCES
) -> Identity | None:
    """The identity that headers (names in lower case) and the program of the URL give; None when there is none."""
    named, program = _from_headers(headers, sources_), clean(program)
    above = clean(headers.get(ours.PARENT_PROGRAM_ID, ""))
    if not program:
        return named if named is None or named.parent_program_id else _below(named, above)
    if named is None:
        return _below(Identity(program_id=program, source="url"), above)
    if named.source == OWN:
        # A program that was opened by the client library, inside the run.
        return _below(named, named.parent_program_id or program)
    if named.parent_program_id:
        return replace(
            named, program_id=clean(f"{program}/{named.program_id}"), parent_program_id=program, source="url"
        )
    root = replace(named, program_id=program, thread_id=named.thread_id or named.program_id, source="url")
    return _below(root, above)


def _below(identity: Identity, parent: ProgramId) -> Identity:
    parent = _NONE if parent == identity.program_id else parent
    return identity if parent == identity.parent_program_id else replace(identity, parent_program_id=parent)


def _from_headers(headers: Mapping[str, str], sources_: Iterable[ProgramHeader]) -> Identity | None:
    for source in sources_:
        program = clean(headers.get(source.program, ""))
        if not program:
            continue
        parent = clean(headers.get(source.parent, "")) if source.parent else _NONE
        child = clean(headers.get(source.child, "")) if source.child else _NONE
        name = headers.get(ours.PROGRAM_NAME, "")
        if child and child != program:
            parent = clean(f"{program}/{parent}") if parent and parent != program else program
            program = clean(f"{program}/{child}")
            name = headers.get(source.name, "") or name
        elif source.child:
            parent = _NONE
        return Identity(
            program_id=program,
            parent_program_id=_NONE if parent == program else parent,
            thread_id=_thread(headers.get(ours.THREAD_ID, "")),
            parent_call_ids=tuple(p.strip() for p in headers.get(ours.PARENT_CALL_IDS, "").split(",") if p.strip()),
            name=ours.short_name(name),
            final=source.final != "" and headers.get(source.final, "").lower() in ("1", "true", "yes"),
            source=source.label,
        )
    return None


def from_body(body: Body) -> Identity:
    """The identity that a JSON body gives; an empty one when it names no program."""
    for value, label in (
        (body.program_id, "body"),
        (body.extra.get("agentic_context"), "agentic-context"),
        (body.prompt_cache_key, "prompt-cache-key"),
    ):
        if isinstance(value, str) and value.strip():
            return Identity(program_id=clean(value), source=label)
    return Identity()
