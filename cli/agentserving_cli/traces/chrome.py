"""A run in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open. Pure.

A program is a process; calls that overlap are on tracks of their own, each with its phases below it. Times are
microseconds since the trace begins. Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from agentserving.client.traces import Trace

from agentserving_cli.traces.spans import CallSpans, ProgramSpans, bounds_us, prefix_words, program_spans

Event = dict[str, Any]
TOOLS_TRACK = 1


def chrome_trace(trace: Trace) -> dict[str, Any]:
    """The trace in Chrome's trace event format, which Perfetto opens: a process for each program."""
    programs = program_spans(trace)
    origin_us, _ = bounds_us(programs)
    events = [event for pid, each in enumerate(programs, start=1) for event in _program(each, pid, origin_us)]
    return {"displayTimeUnit": "ms", "traceEvents": events, "metadata": {"begin_unix_us": origin_us}}


def _program(spans: ProgramSpans, pid: int, origin_us: int) -> Iterator[Event]:
    program = spans.trace.program
    name = f"{program.program_id} ({program.name})" if program.name else program.program_id
    yield _named("process_name", pid, 0, name)
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    yield _named("thread_name", pid, TOOLS_TRACK, "tools")
    for span in spans.tools:
        yield _slice(pid, TOOLS_TRACK, span.name or "between calls", "tools", span.begin_us - origin_us,
                     span.end_us - span.begin_us, {})  # fmt: skip
    for track, calls in enumerate(tracks(spans.calls), start=TOOLS_TRACK + 1):
        yield _named("thread_name", pid, track, f"calls {track - TOOLS_TRACK}")
        for call in calls:
            yield from _call(call, pid, track, origin_us)


def _call(spans: CallSpans, pid: int, track: int, origin_us: int) -> Iterator[Event]:
    call = spans.call
    arguments = {
        "call_id": call.call_id,
        "thread": call.thread_id,
        "engine": call.engine_id,
        "outcome": spans.outcome.name.lower() if spans.outcome else "in flight",
        "prompt_tokens": call.prompt_tokens,
        "cached_tokens": call.cached_tokens,
        "output_tokens": call.output_tokens,
        "prefix": prefix_words(call) or "not known",
        "preemptions": call.preemptions,
        "level": call.level,
        "service_us": call.service_us,
        "parents": list(call.parent_call_ids),
    }
    number = call.call_id.rpartition(".")[2]
    yield _slice(pid, track, f"call {number}", "call", spans.begin_us - origin_us, spans.end_us - spans.begin_us,
                 arguments)  # fmt: skip
    for part in spans.parts:
        yield _slice(pid, track, part.kind.value, "phase", part.begin_us - origin_us, part.end_us - part.begin_us, {})


def tracks(calls: Iterable[CallSpans]) -> list[list[CallSpans]]:
    """Calls in as few sequences as possible in which none overlap; each is in the first that it fits."""
    found: list[list[CallSpans]] = []
    for call in calls:
        free = next((track for track in found if track[-1].end_us <= call.begin_us), None)
        if free is None:
            found.append([call])
        else:
            free.append(call)
    return found


def _slice(pid: int, tid: int, name: str, kind: str, ts: int, dur: int, args: Event) -> Event:
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": kind, "ts": ts, "dur": dur, "args": args}


def _named(what: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}
