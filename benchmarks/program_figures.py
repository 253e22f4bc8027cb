"""What a run of programs on an engine is told by, and how two runs of the same programs compare. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from agentserving_replay.figures import interval, percentile
from agentserving_replay.traces.trace import Program

Figures = dict[str, float]


def tool_s(program: Program) -> float:
    """Time in which only its tools work; its calls come one after the other."""
    return sum(call.gap_s for call in program.calls)


def counted(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What counters have counted between."""
    return {name: after[name] - value for name, value in before.items()}


def figures(programs: Sequence[Program], latencies: Sequence[float], counts: Mapping[str, int]) -> Figures:
    """Of one run; latencies in the order of the programs, tools excluded from those a token."""
    tokens = [
        1000 * (latency - tool_s(program)) / max(1, program.output_tokens)
        for program, latency in zip(programs, latencies, strict=True)
    ]
    return {
        "token_ms": statistics.fmean(tokens),
        "token_p95_ms": percentile(tokens, 0.95),
        "token_p99_ms": percentile(tokens, 0.99),
        "latency_s": statistics.fmean(latencies),
        "latency_p95_s": percentile(latencies, 0.95),
        "latency_p99_s": percentile(latencies, 0.99),
        "prefix_hits": counts["cached_tokens"] / max(1, counts["prompt_tokens"]),
        "preemptions": counts["preemptions_proactive"],
        "preemptions_reactive": counts["preemptions_reactive"],
    }


def ratios(base: Mapping[int, Figures], other: Mapping[int, Figures], name: str) -> list[float]:
    """Seed by seed, how many times the other's figure the base's is: above 1 the other is better.

    A seed that only one of them has is left out: its programs are no others' equals.
    """
    return [base[seed][name] / other[seed][name] for seed in sorted(base.keys() & other.keys())]


def told(values: Sequence[float]) -> str:
    """A mean with its 95 % interval; of one value, it alone."""
    if not values:
        return "-"
    mean, half = interval(values)
    return f"{mean:.2f} ± {half:.2f}" if len(values) > 1 else f"{mean:.2f}"
