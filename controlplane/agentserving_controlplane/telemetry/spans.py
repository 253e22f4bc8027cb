"""Endings as OTLP spans. Pure.

Names and attributes follow OpenTelemetry's semantic conventions for generative AI where they have one (`gen_ai.*`), and
are `agentserving.*` elsewhere. Messages are built directly: the SDK's spans cost three times as much CPU a call.

Ids are derived from what they name, so that a program's calls, its sub-agents and it itself find each other although
none is sent with another, and also after a change of leader.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from agentserving.contract.ids import ProgramId, Tenant
from agentserving.contract.phases import PhaseKind, PrefixMiss, placed
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agentserving_controlplane.table.endings import ClosedProgram, EndedCall, Origin
from agentserving_controlplane.table.rows import CallRow
from agentserving_controlplane.table.states import Outcome
from agentserving_controlplane.table.traces import ToolWait

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

Spans: TypeAlias = "RepeatedCompositeFieldContainer[Span]"
_PHASES = {kind.value: kind.name.lower() for kind in PhaseKind}
_MISSES = {miss.value: miss.name.lower() for miss in PrefixMiss}
_FAILED = (Outcome.FAILED, Outcome.EXPIRED, Outcome.REJECTED)


@lru_cache(maxsize=4096)
def trace_id(tenant: Tenant, root: ProgramId, root_open_us: int) -> bytes:
    """16 bytes for a program's whole tree."""
    return hashlib.blake2b(f"{tenant}\0{root}\0{root_open_us}".encode(), digest_size=16).digest()


@lru_cache(maxsize=4096)
def program_span_id(tenant: Tenant, program_id: ProgramId) -> bytes:
    """8 bytes for a program."""
    return _span_id(f"program\0{tenant}\0{program_id}")


def _span_id(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def add_program(spans: Spans, tenant: Tenant, ended: ClosedProgram) -> None:
    """A program, from its opening to its end; a sub-agent is below its parent."""
    origin = ended.origin
    span = spans.add(
        trace_id=trace_id(tenant, origin.root, origin.root_open_us),
        span_id=program_span_id(tenant, origin.program_id),
        parent_span_id=program_span_id(tenant, origin.parent) if origin.parent else b"",
        name=f"invoke_agent {origin.name}".rstrip(),
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=origin.open_us * 1000,
        end_time_unix_nano=max(ended.close_us, origin.open_us) * 1000,
    )
    _text(span, "gen_ai.operation.name", "invoke_agent")
    _text(span, "gen_ai.agent.name", origin.name)
    _describe(span, tenant, origin, ended.outcome)


def add_tool_wait(spans: Spans, tenant: Tenant, origin: Origin, wait: ToolWait) -> None:
    """A declared tool wait, below its program."""
    span = spans.add(
        trace_id=trace_id(tenant, origin.root, origin.root_open_us),
        span_id=_span_id(f"tool\0{tenant}\0{origin.program_id}\0{wait.begin_us}"),
        parent_span_id=program_span_id(tenant, origin.program_id),
        name=f"execute_tool {wait.tool}".rstrip(),
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=wait.begin_us * 1000,
        end_time_unix_nano=wait.end_us * 1000,
    )
    _text(span, "gen_ai.operation.name", "execute_tool")
    _text(span, "gen_ai.tool.name", wait.tool)
    _describe(span, tenant, origin, Outcome.NONE)


def add_call(spans: Spans, tenant: Tenant, ended: EndedCall) -> None:
    """A call and its phases. With a traceparent it belongs to its client's trace, and is linked to its program."""
    call, origin = ended.call, ended.origin
    trace = in_program = trace_id(tenant, origin.root, origin.root_open_us)
    parent = program = program_span_id(tenant, origin.program_id)
    if call.trace_parent:
        _, theirs, their_span, flags = call.trace_parent.split("-")
        if not int(flags, 16) & 1:
            return
        trace, parent = bytes.fromhex(theirs), bytes.fromhex(their_span)
    own = _span_id(call.call_id)
    gateway_us = call.admit_us - call.gateway_us
    begin_us = gateway_us - call.held_us
    span = spans.add(
        trace_id=trace,
        span_id=own,
        parent_span_id=parent,
        name="chat",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=begin_us * 1000,
        end_time_unix_nano=ended.end_us * 1000,
    )
    if call.trace_parent:
        span.links.add(trace_id=in_program, span_id=program)
    _describe_call(span, call)
    _describe(span, tenant, origin, ended.outcome)
    parts = placed(call.phases, admit_us=call.admit_us, arrive_us=call.arrive_us, end_us=ended.end_us)
    names = [("held", begin_us, gateway_us)] if call.held_us else []
    names += [("gateway", gateway_us, call.admit_us)] if call.gateway_us else []
    names += [(_PHASES.get(kind, "unspecified"), begin, end) for kind, begin, end in parts]
    # Phases have no names of their own: their ids follow the call's.
    number = int.from_bytes(own)
    for name, begin, end in names:
        number = (number + 1) % (1 << 64)
        spans.add(
            trace_id=trace,
            span_id=number.to_bytes(8),
            parent_span_id=own,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=begin * 1000,
            end_time_unix_nano=end * 1000,
        )


def _describe_call(span: Span, call: CallRow) -> None:
    _text(span, "gen_ai.operation.name", "chat")
    _text(span, "agentserving.call.id", call.call_id)
    _text(span, "agentserving.engine.id", call.engine_id)
    _text(span, "agentserving.prefix", _MISSES.get(call.prefix_miss, "unspecified"))
    for name, value in (
        ("gen_ai.usage.input_tokens", call.prompt_tokens),
        ("gen_ai.usage.output_tokens", call.output_tokens),
        ("gen_ai.usage.cache_read.input_tokens", call.cached_tokens),
        ("agentserving.prefix.common_tokens", call.common_tokens),
        ("agentserving.preemptions", call.preemptions),
    ):
        # Absent is zero: most of these are.
        if value:
            span.attributes.add(key=name).value.int_value = value


def _describe(span: Span, tenant: Tenant, origin: Origin, outcome: Outcome) -> None:
    _text(span, "gen_ai.conversation.id", origin.program_id)
    _text(span, "agentserving.tenant", tenant)
    if outcome:
        _text(span, "agentserving.outcome", outcome.name.lower())
    if outcome in _FAILED:
        span.status.code, span.status.message = Status.STATUS_CODE_ERROR, outcome.name.lower()


def _text(span: Span, key: str, value: str) -> None:
    span.attributes.add(key=key).value.string_value = value
