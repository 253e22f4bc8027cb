"""Endings as OTLP spans. Pure.

Names and attributes follow OpenTelemetry's semantic conventions for generative AI where they have one (`gen_ai.*`), and
are `agentserving.*` elsewhere. Messages are built directly: the SDK's spans cost three times as much CPU a call.

Ids are derived from what they name, so that a program's calls, its sub-agents and it itself find each other although
none is sent with another, and also after a change of leader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from agentserving.contract.ids import ProgramId, Tenant
from agentserving.contract.phases import PhaseKind, PrefixMiss, placed
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agentserving_controlplane.table.endings import ClosedProgram, EndedCall, Origin
from agentserving_controlplane.table.rows import CallRow
from agentserving_controlplane.table.states import Outcome
from agentserving_controlplane.table.traces import ToolWait

_PHASES = {kind.value: kind.name.lower() for kind in PhaseKind}
_MISSES = {miss.value: miss.name.lower() for miss in PrefixMiss}
_FAILED = (Outcome.FAILED, Outcome.EXPIRED, Outcome.REJECTED)


def trace_id(tenant: Tenant, root: ProgramId, root_open_us: int) -> bytes:
    """16 bytes for a program's whole tree."""
    return hashlib.blake2b(f"{tenant}\0{root}\0{root_open_us}".encode(), digest_size=16).digest()


def span_id(*parts: object) -> bytes:
    """8 bytes for what these name."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()


def _program_span_id(tenant: Tenant, program_id: ProgramId) -> bytes:
    return span_id("program", tenant, program_id)


def program_span(tenant: Tenant, ended: ClosedProgram) -> Span:
    """A program, from its opening to its end; a sub-agent is below its parent."""
    origin = ended.origin
    return Span(
        trace_id=trace_id(tenant, origin.root, origin.root_open_us),
        span_id=_program_span_id(tenant, origin.program_id),
        parent_span_id=_program_span_id(tenant, origin.parent) if origin.parent else b"",
        name=f"invoke_agent {origin.name}".rstrip(),
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=origin.open_us * 1000,
        end_time_unix_nano=max(ended.close_us, origin.open_us) * 1000,
        attributes=[
            _text("gen_ai.operation.name", "invoke_agent"),
            _text("gen_ai.agent.name", origin.name),
            *_of(tenant, origin),
            _text("agentserving.outcome", ended.outcome.name.lower()),
        ],
        status=_status(ended.outcome),
    )


def tool_span(tenant: Tenant, origin: Origin, wait: ToolWait) -> Span:
    """A declared tool wait, below its program."""
    return Span(
        trace_id=trace_id(tenant, origin.root, origin.root_open_us),
        span_id=span_id("tool", tenant, origin.program_id, wait.begin_us),
        parent_span_id=_program_span_id(tenant, origin.program_id),
        name=f"execute_tool {wait.tool}".rstrip(),
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=wait.begin_us * 1000,
        end_time_unix_nano=wait.end_us * 1000,
        attributes=[
            _text("gen_ai.operation.name", "execute_tool"),
            _text("gen_ai.tool.name", wait.tool),
            *_of(tenant, origin),
        ],
    )


def call_spans(tenant: Tenant, ended: EndedCall) -> Iterator[Span]:
    """A call and its phases. With a traceparent it belongs to its client's trace, and is linked to its program."""
    call, origin = ended.call, ended.origin
    in_program = trace_id(tenant, origin.root, origin.root_open_us)
    trace, parent = in_program, _program_span_id(tenant, origin.program_id)
    links = []
    if call.trace_parent:
        _, theirs, their_span, flags = call.trace_parent.split("-")
        if not int(flags, 16) & 1:
            return
        links = [Span.Link(trace_id=trace, span_id=parent)]
        trace, parent = bytes.fromhex(theirs), bytes.fromhex(their_span)
    own = span_id("call", call.call_id)
    yield Span(
        trace_id=trace,
        span_id=own,
        parent_span_id=parent,
        name="chat",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=(call.admit_us - call.gateway_us) * 1000,
        end_time_unix_nano=ended.end_us * 1000,
        attributes=[
            *_call_attributes(call),
            *_of(tenant, origin),
            _text("agentserving.outcome", ended.outcome.name.lower()),
        ],
        links=links,
        status=_status(ended.outcome),
    )
    parts = placed(call.phases, admit_us=call.admit_us, arrive_us=call.arrive_us, end_us=ended.end_us)
    names = [("gateway", call.admit_us - call.gateway_us, call.admit_us)]
    names += [(_PHASES.get(kind, "unspecified"), begin_us, end_us) for kind, begin_us, end_us in parts]
    for number, (name, begin_us, end_us) in enumerate(names):
        if end_us > begin_us:
            yield Span(
                trace_id=trace,
                span_id=span_id("phase", call.call_id, number),
                parent_span_id=own,
                name=name,
                kind=Span.SPAN_KIND_INTERNAL,
                start_time_unix_nano=begin_us * 1000,
                end_time_unix_nano=end_us * 1000,
            )


def _call_attributes(call: CallRow) -> list[KeyValue]:
    return [
        _text("gen_ai.operation.name", "chat"),
        _number("gen_ai.usage.input_tokens", call.prompt_tokens),
        _number("gen_ai.usage.output_tokens", call.output_tokens),
        _number("gen_ai.usage.cache_read.input_tokens", call.cached_tokens),
        _text("agentserving.call.id", call.call_id),
        _text("agentserving.engine.id", call.engine_id),
        _text("agentserving.prefix", _MISSES.get(call.prefix_miss, "unspecified")),
        _number("agentserving.prefix.common_tokens", call.common_tokens),
        _number("agentserving.preemptions", call.preemptions),
        _number("agentserving.level", call.level),
        _number("agentserving.service_us", call.service_us),
    ]


def _of(tenant: Tenant, origin: Origin) -> list[KeyValue]:
    return [
        _text("gen_ai.conversation.id", origin.program_id),
        _text("agentserving.tenant", tenant),
        _text("agentserving.program.root_id", origin.root),
    ]


def _status(outcome: Outcome) -> Status:
    return Status(code=Status.STATUS_CODE_ERROR, message=outcome.name.lower()) if outcome in _FAILED else Status()


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def _number(key: str, value: int) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(int_value=value))
