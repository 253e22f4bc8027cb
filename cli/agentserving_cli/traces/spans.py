"""When each part of a run happened, on the control plane's clock. Pure.

The control plane knows when a call was admitted and when it heard of its end; the engine measures the phases between by
its own clock, whose wall time may differ. So the phases keep their lengths, and their begin is limited to where they
fit: whatever the clocks say, nothing overlaps and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from agentserving.client.traces import ProgramTrace, Trace
from agentserving.client.values import Call, Outcome
from agentserving.contract.phases import PhaseKind, PrefixMiss, placed


class Kind(StrEnum):
    """What a call, or a program between its calls, does at a time."""

    # At the gateway, before the leader has admitted it.
    GATEWAY = "gateway"
    # From the admission until the engine has it.
    TRAVEL = "on its way"
    HELD = "held"
    QUEUE = "queue"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"
    # From the engine's end until the control plane has heard of it.
    REPORT = "reported"
    TOOLS = "tools"


_OF_PHASE = {
    PhaseKind.HELD: Kind.HELD,
    PhaseKind.QUEUE: Kind.QUEUE,
    PhaseKind.PREFILL: Kind.PREFILL,
    PhaseKind.DECODE: Kind.DECODE,
    PhaseKind.PREEMPTED: Kind.PREEMPTED,
}


@dataclass(frozen=True, slots=True)
class Span:
    """Unix microseconds. `name`: of the tool, for a declared tool wait."""

    kind: Kind
    begin_us: int
    end_us: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class CallSpans:
    """A call and its parts, in order and without gaps. `outcome` UNSPECIFIED while it goes on."""

    call: Call
    outcome: Outcome
    begin_us: int
    end_us: int
    parts: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class ProgramSpans:
    """One program: its calls in the order of their begins, and the time between them."""

    trace: ProgramTrace
    calls: tuple[CallSpans, ...]
    tools: tuple[Span, ...]


def unix_us(time: datetime | None) -> int:
    """Microseconds; 0 for None."""
    return round(time.timestamp() * 1e6) if time is not None else 0


def program_spans(trace: Trace) -> list[ProgramSpans]:
    """All programs of a trace."""
    return [_program(each, unix_us(trace.read_time)) for each in trace.programs]


def bounds_us(programs: Iterable[ProgramSpans]) -> tuple[int, int]:
    """First begin and last end of all spans; (0, 0) without any."""
    found = [(span.begin_us, span.end_us) for each in programs for span in each.calls]
    found += [(span.begin_us, span.end_us) for each in programs for span in each.tools]
    return min((begin for begin, _ in found), default=0), max((end for _, end in found), default=0)


def _program(trace: ProgramTrace, read_us: int) -> ProgramSpans:
    calls = [_call(each.call, each.outcome, unix_us(each.end_time)) for each in trace.finished]
    calls += [_call(call, Outcome.UNSPECIFIED, max(read_us, unix_us(call.admit_time))) for call in trace.program.calls]
    calls.sort(key=lambda call: call.begin_us)
    waits = [
        Span(Kind.TOOLS, unix_us(wait.begin_time), unix_us(wait.end_time) or read_us, wait.tool or "tool")
        for wait in trace.tool_waits
    ]
    begin_us = calls[0].begin_us if calls else 0
    declared = [span for span in waits if span.end_us > begin_us]
    return ProgramSpans(trace, tuple(calls), tuple(sorted([*declared, *_gaps(calls, declared)], key=_begin)))


def _begin(span: Span) -> int:
    return span.begin_us


def _gaps(calls: list[CallSpans], declared: list[Span]) -> Iterator[Span]:
    """Time between calls in which no tool wait was declared: tools work, or people."""
    until_us = 0
    busy = [(each.begin_us, each.end_us) for each in calls] + [(each.begin_us, each.end_us) for each in declared]
    for begin_us, end_us in sorted(busy):
        if until_us and begin_us > until_us:
            yield Span(Kind.TOOLS, until_us, begin_us)
        until_us = max(until_us, end_us)


def _call(call: Call, outcome: Outcome, end_us: int) -> CallSpans:
    admit_us = unix_us(call.admit_time)
    end_us = max(end_us, admit_us)
    gateway_us = admit_us - call.gateway_us
    begin_us = gateway_us - call.held_us
    phases = placed(
        ((phase.kind, phase.duration_us) for phase in call.phases),
        admit_us=admit_us, arrive_us=unix_us(call.arrive_time), end_us=end_us,
    )  # fmt: skip
    at_us = phases[0][1] if phases else admit_us
    parts = [
        Span(Kind.HELD, begin_us, gateway_us),
        Span(Kind.GATEWAY, gateway_us, admit_us),
        Span(Kind.TRAVEL, admit_us, at_us),
    ]
    parts += [Span(_OF_PHASE.get(PhaseKind(kind), Kind.QUEUE), begin, end) for kind, begin, end in phases]
    at_us = parts[-1].end_us
    # Of a call in flight, the time since its last report.
    parts.append(Span(parts[-1].kind if not outcome and call.phases else Kind.REPORT, at_us, end_us))
    return CallSpans(call, outcome, begin_us, end_us, tuple(part for part in parts if part.end_us > part.begin_us))


def time_to_first_token_us(spans: CallSpans) -> int | None:
    """From the call's begin to its first token; None before there is one."""
    for part in spans.parts:
        if part.kind is Kind.DECODE:
            return part.begin_us - spans.begin_us
    return None


def prefix_words(call: Call) -> str:
    """What became of a call's prefix, in a few words; "" while it is not known."""
    share = f" {call.cached_tokens / call.prompt_tokens:.0%}" if call.prompt_tokens else ""
    match call.prefix_miss:
        case PrefixMiss.NONE:
            return f"hit{share}"
        case PrefixMiss.FIRST:
            return f"first{share if call.cached_tokens else ''}"
        case PrefixMiss.DIVERGED:
            return f"diverged at {call.common_tokens}"
        case PrefixMiss.ANSWER_CHANGED:
            return f"answer at {call.common_tokens}"
        case PrefixMiss.EVICTED:
            return f"evicted {call.common_tokens - call.cached_tokens}"
        case PrefixMiss.OTHER_ENGINE:
            return "other engine"
        case PrefixMiss.SALT:
            return "salt"
    return ""
