"""What the page is sent: values of the client as plain JSON. Times are Unix microseconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agentserving.client.traces import Trace
from agentserving.client.values import Engine, Overview, PauseCause, PolicyVersion, Program, TenantSettings
from agentserving.contract.budgets import in_words

from agentserving_cli.top_view import received
from agentserving_cli.traces.spans import (
    CallSpans,
    ProgramSpans,
    bounds_us,
    prefix_words,
    program_spans,
    time_to_first_token_us,
    unix_us,
)
from agentserving_cli.traces.timeline import misses_of, split_of

Json = dict[str, Any]


def programs_json(programs: Iterable[Program], *, more: bool) -> Json:
    """Rows of the list; `more`: there are programs beyond these."""
    return {"programs": [_program(program) for program in programs], "more": more}


def cluster_json(overview: Overview, policy: PolicyVersion, tenants: Sequence[TenantSettings]) -> Json:
    """Engines, policy and tenants."""
    return {
        "counts": {
            "programs": overview.programs_live,
            "running": overview.calls_running,
            "waiting": overview.calls_waiting,
            "completed": overview.calls_completed,
            "unmanaged": overview.calls_unmanaged,
        },
        "store": "" if overview.store_healthy else overview.store_message or "the store does not take writes",
        "policy": {
            "name": policy.policy.name,
            "version": policy.version,
            "balancer": policy.balancer.name.lower(),
            "pending": list(policy.pending_engine_ids),
            "choices": [
                {"class": choice.application, "chosen": choice.chosen, "reason": choice.reason}
                for choice in policy.choices
            ],
        },
        "engines": [_engine(engine) for engine in sorted(overview.engines, key=lambda each: each.engine_id)],
        "tenants": [
            {"tenant": each.tenant, "weight": each.weight, "service": each.service_class.label} for each in tenants
        ],
    }


def trace_json(trace: Trace) -> Json:
    """A run: each program with its calls, their parts, and the time between them."""
    programs = program_spans(trace)
    begin_us, end_us = bounds_us(programs)
    return {
        "begin": begin_us,
        "end": end_us,
        "left_out": trace.programs_left_out,
        "programs": [_run(each) for each in programs],
    }


def _program(program: Program) -> Json:
    running = sum(1 for call in program.calls if call.running)
    return {
        "id": program.program_id,
        "name": program.name,
        "parent": program.parent_program_id,
        "state": program.state.name.lower(),
        "outcome": program.outcome.name.lower() if program.outcome else "",
        "tool": program.tool,
        "budget": in_words(program.budget) if program.budget is not None else "",
        "spent": program.pause_cause is PauseCause.BUDGET,
        "service": program.service_class.label,
        "level": program.level,
        "attained": received(program),
        "running": running,
        "queued": len(program.calls) - running,
        "done": program.calls_completed,
        "prompt": program.prompt_tokens,
        "cached": program.cached_tokens,
        "output": program.output_tokens,
        "preemptions": program.preemptions,
        "opened": unix_us(program.open_time),
        "engines": list(program.engine_ids),
        "split": {kind.value: us for kind, us in split_of(program).items() if us},
    }


def _engine(engine: Engine) -> Json:
    load = engine.load
    return {
        "id": engine.engine_id,
        "state": engine.state.name.lower(),
        "reason": engine.state_reason,
        "running": load.running,
        "waiting": load.waiting,
        "slots": engine.capabilities.max_num_seqs,
        "blocks": load.total_blocks,
        "free": load.free_blocks,
        "preemptions": load.preemptions_proactive + load.preemptions_reactive,
        "cached": load.cached_tokens / load.prompt_tokens if load.prompt_tokens else 0.0,
        "version": f"{engine.capabilities.engine_kind.lower()} {engine.capabilities.engine_version}".strip(),
    }


def _run(spans: ProgramSpans) -> Json:
    return {
        **_program(spans.trace.program),
        "left_out": spans.trace.calls_left_out,
        "misses": misses_of(spans.trace.program),
        "threads": [
            {"id": thread.thread_id, "calls": thread.calls, "service": thread.service_us, "wait": thread.wait_us}
            for thread in spans.trace.program.threads
        ],
        "tools": [{"begin": span.begin_us, "end": span.end_us, "name": span.name} for span in spans.tools],
        "calls": [_call(call) for call in spans.calls],
    }


def _call(spans: CallSpans) -> Json:
    call = spans.call
    return {
        "id": call.call_id,
        "engine": call.engine_id,
        "thread": call.thread_id,
        "outcome": spans.outcome.name.lower() if spans.outcome else "",
        "begin": spans.begin_us,
        "end": spans.end_us,
        "first_token": time_to_first_token_us(spans),
        "prefix": prefix_words(call),
        "prompt": call.prompt_tokens,
        "cached": call.cached_tokens,
        "common": call.common_tokens,
        "output": call.output_tokens,
        "preemptions": call.preemptions,
        "level": call.level,
        "service": call.service_us,
        "parts": [[part.kind.value, part.begin_us, part.end_us] for part in spans.parts],
    }
