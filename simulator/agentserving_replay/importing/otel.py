"""Reads spans of OpenTelemetry's GenAI conventions from the lines that the OTLP JSON file exporter writes.

A span with `gen_ai.operation.name` chat, text_completion or generate_content, or with token counts and no operation, is
a call. A program is a conversation (`gen_ai.conversation.id`), or else a trace. Spans of `invoke_agent` around a call,
except the outermost one, make it a call of a sub-agent. No span says which tokens repeat: what a prompt shares is
estimated from token counts and cache reads, as for `agentserving record` (traces/sharing.py). Text is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from agentserving.contract.ids import CallId, ProgramId

from agentserving_replay.importing.errors import ImportFailedError, checked_seconds, checked_tokens
from agentserving_replay.importing.weka import recorded
from agentserving_replay.traces.file import CallLine, ProgramLine
from agentserving_replay.traces.recording import Member, Tree, call_lines, program_lines
from agentserving_replay.traces.sharing import of_system, system_tokens

CALLS = frozenset({"chat", "text_completion", "generate_content"})
AGENT = "invoke_agent"
# The current name and the one of conventions before 1.27.
INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
CACHED = ("gen_ai.usage.cache_read.input_tokens",)
MAX_PARENTS = 64


class _Attribute(msgspec.Struct):
    key: str
    value: dict[str, Any] = {}


class _Span(msgspec.Struct, kw_only=True):
    traceId: str
    spanId: str
    parentSpanId: str = ""
    startTimeUnixNano: int | str = 0
    endTimeUnixNano: int | str = 0
    attributes: list[_Attribute] = []


class _ScopeSpans(msgspec.Struct):
    spans: list[_Span] = []


class _Resource(msgspec.Struct):
    attributes: list[_Attribute] = []


class _ResourceSpans(msgspec.Struct):
    resource: _Resource = msgspec.field(default_factory=_Resource)
    scopeSpans: list[_ScopeSpans] = []


class _Export(msgspec.Struct):
    resourceSpans: list[_ResourceSpans]


@dataclass(slots=True, kw_only=True)
class _Call:
    """A call before its program is known as a whole; seconds of Unix time."""

    span: tuple[str, str]
    conversation: str
    start_s: float
    end_s: float
    prompt: int
    output: int
    cached: int


@dataclass(slots=True)
class _Spans:
    """What is kept of all spans: calls, each span's parent, and the agents."""

    calls: list[_Call] = field(default_factory=list)
    parents: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    agents: dict[tuple[str, str], str] = field(default_factory=dict)
    services: dict[str, str] = field(default_factory=dict)

    def agents_around(self, span: tuple[str, str]) -> list[tuple[str, str]]:
        """Spans of agents that contain the span, the innermost first."""
        found, at = [], span
        for _ in range(MAX_PARENTS):
            if at not in self.parents:
                break
            at = self.parents[at]
            if at in self.agents:
                found.append(at)
        return found


_decoder = msgspec.json.Decoder(_Export)


def read(lines: Iterable[bytes]) -> Iterator[list[ProgramLine | CallLine]]:
    """The lines of each program, ordered by the beginning of its first call. ImportFailedError."""
    spans = _Spans()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            export = _decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise ImportFailedError(where, str(error)) from error
        for resource in export.resourceSpans:
            service = str(_values(resource.resource.attributes).get("service.name", ""))
            for scope in resource.scopeSpans:
                for index, span in enumerate(scope.spans):
                    _take(spans, f"{where}, span {index + 1}", span, service)
    if not spans.calls:
        raise ImportFailedError("the file", "no span of a GenAI call in it (gen_ai.operation.name: chat)")
    yield from _programs(spans)


def _values(attributes: Iterable[_Attribute]) -> dict[str, Any]:
    """Attributes by key; OTLP writes 64-bit integers as strings."""
    found: dict[str, Any] = {}
    for attribute in attributes:
        for kind, value in attribute.value.items():
            found[attribute.key] = int(value) if kind == "intValue" else value
    return found


def _take(spans: _Spans, where: str, span: _Span, service: str) -> None:
    try:
        values = _values(span.attributes)
        begin_ns, end_ns = int(span.startTimeUnixNano), int(span.endTimeUnixNano)
    except ValueError as error:
        raise ImportFailedError(where, str(error)) from error
    key = (span.traceId, span.spanId)
    if span.parentSpanId:
        spans.parents[key] = (span.traceId, span.parentSpanId)
    operation = values.get("gen_ai.operation.name", "")
    if operation == AGENT:
        spans.agents[key] = str(values.get("gen_ai.agent.name", ""))
    if operation not in CALLS and (operation or _first(values, INPUT) is None):
        return
    if not end_ns:
        raise ImportFailedError(where, "endTimeUnixNano: missing, so it is not known when the call ended")
    if end_ns < begin_ns or not begin_ns:
        raise ImportFailedError(where, f"endTimeUnixNano: {end_ns} is before its start, {begin_ns}")
    checked_seconds(where, "endTimeUnixNano - startTimeUnixNano", (end_ns - begin_ns) / 1e9)
    prompt = _first(values, INPUT)
    if prompt is None:
        raise ImportFailedError(where, f"{INPUT[0]}: missing")
    checked_tokens(where, INPUT[0], prompt, 1)
    conversation = str(values.get("gen_ai.conversation.id", "")) or span.traceId
    spans.services.setdefault(conversation, service)
    spans.calls.append(
        _Call(
            span=key,
            conversation=conversation,
            start_s=begin_ns / 1e9,
            end_s=end_ns / 1e9,
            prompt=prompt,
            output=checked_tokens(where, OUTPUT[0], _first(values, OUTPUT) or 0, 0),
            cached=min(prompt, checked_tokens(where, CACHED[0], _first(values, CACHED) or 0, 0)),
        )
    )


def _first(values: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    return next((int(values[key]) for key in keys if key in values), None)


def _programs(spans: _Spans) -> Iterator[list[ProgramLine | CallLine]]:
    conversations: dict[str, list[_Call]] = {}
    for call in spans.calls:
        conversations.setdefault(call.conversation, []).append(call)
    begin_s = min(call.start_s for call in spans.calls)
    ordered = sorted(conversations.items(), key=lambda item: min(call.start_s for call in item[1]))
    written = [_tree_lines(spans, f"otel-{number}", name, calls, begin_s) for number, (name, calls) in
               enumerate(ordered)]  # fmt: skip
    names = {line.program: line.name for lines in written for line in lines if isinstance(line, ProgramLine)}
    found: dict[str, list[int]] = {}
    bare = [line for lines in written for line in lines if isinstance(line, CallLine) and not line.extends]
    for line in bare:
        found.setdefault(names[line.program.split("/")[0]], []).append(line.shared_tokens)
    for line in bare:
        name = names[line.program.split("/")[0]]
        line.shared_tokens = of_system(
            line.shared_tokens, line.prompt_tokens, system_tokens(found[name]), named=bool(name)
        )
    yield from written


def _tree_lines(
    spans: _Spans, program_id: str, conversation: str, calls: list[_Call], begin_s: float
) -> list[ProgramLine | CallLine]:
    root = ProgramId(program_id)
    open_us = round((min(call.start_s for call in calls) - begin_s) * 1e6)
    tree = Tree(root=root, open_us=open_us)
    outermost = {around[-1] for call in calls if (around := spans.agents_around(call.span))}
    name = next((spans.agents[agent] for agent in sorted(outermost) if spans.agents[agent]), "")
    name = (name or spans.services[conversation])[:64]
    tree.members[root] = Member(program_id=root, name=name, parent=ProgramId(""), open_us=open_us)
    programs: dict[tuple[str, str], ProgramId] = {}
    for number, call in enumerate(sorted(calls, key=lambda call: call.start_s)):
        above = root
        start_s = call.start_s - begin_s
        for agent in reversed(spans.agents_around(call.span)[:-1]):
            program = programs.setdefault(agent, ProgramId(f"{root}/{len(programs) + 1}"))
            if program not in tree.members:
                tree.members[program] = Member(
                    program_id=program, name=spans.agents[agent][:64], parent=above, open_us=round(start_s * 1e6)
                )
            above = program
        tree.calls.append(recorded(
            CallId(str(number)), above, start_s, call.end_s - begin_s, call.prompt, call.output, call.cached
        ))  # fmt: skip
    names: dict[ProgramId, str] = {program: program for program in tree.members}
    return [*program_lines(tree, names, 0), *call_lines(tree, names)]
