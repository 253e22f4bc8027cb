"""Where the time of a program's finished calls went, and what became of their prefixes. Pure.

Engines report the phases and the prefix of each call. What only the table knows is added here: time at the gateway,
time without a call in flight, and that a program's context is on another engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentserving.contract.phases import PhaseKind, PrefixMiss

from agentserving_controlplane.table.distributions import Distributions
from agentserving_controlplane.table.rows import MAX_SUM, CallRow, ProgramRow, TimeRow

_FIELDS: dict[int, str] = {
    PhaseKind.HELD: "held_us",
    PhaseKind.QUEUE: "queue_us",
    PhaseKind.PREFILL: "prefill_us",
    PhaseKind.DECODE: "decode_us",
    PhaseKind.PREEMPTED: "preempted_us",
}
_MISSES = frozenset(map(int, PrefixMiss))


@dataclass(slots=True)
class TimeTotals:
    """Of all finished calls since this process began to lead, for /metrics."""

    times: TimeRow = field(default_factory=TimeRow)
    misses: dict[int, tuple[int, int]] = field(default_factory=dict)
    distributions: Distributions = field(default_factory=Distributions)
    prompt_tokens: int = 0

    @property
    def evicted_tokens(self) -> int:
        """Tokens of these prompts that were computed again because engines had evicted them."""
        return self.misses.get(int(PrefixMiss.EVICTED), (0, 0))[1]


def call_admitted(row: ProgramRow, totals: TimeTotals, now_us: int) -> None:
    """A call is about to join a program: without any in flight, its tools, or its people, have worked until now."""
    if not row.calls and row.last_completion_us and not row.close_us:
        gap_us = max(0, now_us - row.last_completion_us)
        for times in (row.times, totals.times):
            times.tools_us = min(times.tools_us + gap_us, MAX_SUM)


def call_charged(row: ProgramRow, call: CallRow, totals: TimeTotals) -> None:
    """A call that its engine has reported has ended."""
    totals.distributions.call_ended(row, call)
    call.prefix_miss = prefix_miss(row, call)
    totals.prompt_tokens += call.prompt_tokens
    lost = max(0, call.common_tokens - call.cached_tokens) if call.prefix_miss == PrefixMiss.EVICTED else 0
    for times, misses in ((row.times, row.prefix_misses), (totals.times, totals.misses)):
        times.gateway_us = min(times.gateway_us + call.gateway_us, MAX_SUM)
        times.held_us = min(times.held_us + call.held_us, MAX_SUM)
        for kind, us in call.phases:
            if (name := _FIELDS.get(kind)) is not None:
                setattr(times, name, min(getattr(times, name) + us, MAX_SUM))
        calls, tokens = misses.get(call.prefix_miss, (0, 0))
        misses[call.prefix_miss] = min(calls + 1, MAX_SUM), min(tokens + lost, MAX_SUM)


def prefix_miss(row: ProgramRow, call: CallRow) -> int:
    """What became of a call's prefix, of which its engine has only seen its own part."""
    miss = call.prefix_miss if call.prefix_miss in _MISSES else PrefixMiss.UNSPECIFIED
    if miss != PrefixMiss.FIRST:
        return int(miss)
    thread = row.threads.get(call.thread_id)
    if not call.follows or (call.thread_id and thread is not None and thread.calls <= 1):
        return int(miss)
    if call.elsewhere or call.engine_id not in row.engines:
        return int(PrefixMiss.OTHER_ENGINE)
    # It ran here, and the engine does not remember: it has restarted, or many others have run since.
    return int(miss if call.thread_id else PrefixMiss.UNSPECIFIED)
