"""Figures of a run of programs on an engine, and the comparison of two runs of the same programs. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from agentserving_replay.figures import interval, percentile
from agentserving_replay.traces.trace import Program

Figures = dict[str, float]


def tool_s(program: Program) -> float:
    """Time in which only tools run, for a program whose calls are sequential."""
    return sum(call.gap_s for call in program.calls)


def counted(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """Increase of each counter."""
    return {name: after[name] - value for name, value in before.items()}


def figures(programs: Sequence[Program], latencies: Sequence[float], counts: Mapping[str, int]) -> Figures:
    """Figures of one run; `latencies` in the order of the programs. Token latency excludes tools."""
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
    """Base divided by other, seed by seed: above 1 the other is better.

    Seeds that only one of them ran are left out, because other programs are not comparable.
    """
    return [base[seed][name] / other[seed][name] for seed in sorted(base.keys() & other.keys())]


def with_interval(values: Sequence[float]) -> str:
    """The mean and half of its 95 % interval; a single value has none."""
    if not values:
        return "-"
    mean, half = interval(values)
    return f"{mean:.2f} ± {half:.2f}" if len(values) > 1 else f"{mean:.2f}"
