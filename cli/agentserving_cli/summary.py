"""Figures of one run of a load. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agentserving.v1 import types_pb2


class ProgramResult(Protocol):
    """What a program's run tells (examples/mixed_load.py)."""

    program_id: str
    shape: str
    latency_s: float
    output_tokens: int
    calls: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """Over programs; token latency is a program's latency by its output tokens (paper, section 6)."""

    policy: str
    latency_mean_s: float
    latency_p95_s: float
    latency_p99_s: float
    token_latency_mean_ms: float
    token_latency_p95_ms: float
    wait_share: float
    preemptions: int
    prefix_hits: float
    failed: int
    latencies_s: list[float] = field(default_factory=list)
    shapes: dict[str, float] = field(default_factory=dict)


def quantile(values: Sequence[float], q: float) -> float:
    """Linear between ranks; 0 for nothing."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summarise(
    policy: str,
    results: Sequence[ProgramResult],
    rows: Mapping[str, types_pb2.Program],
    engine_totals: Mapping[str, int],
) -> Summary:
    """From programs' own clocks, the process table and the engines' counters."""
    good = [result for result in results if not result.failed]
    latencies = [result.latency_s for result in good]
    per_token = [1000 * result.latency_s / max(1, result.output_tokens) for result in good]
    waited = sum(rows[result.program_id].wait_us for result in good)
    served = sum(rows[result.program_id].total_service_us for result in good)
    shapes: dict[str, list[float]] = {}
    for result in good:
        shapes.setdefault(result.shape, []).append(result.latency_s)
    return Summary(
        policy,
        sum(latencies) / max(1, len(latencies)),
        quantile(latencies, 0.95),
        quantile(latencies, 0.99),
        sum(per_token) / max(1, len(per_token)),
        quantile(per_token, 0.95),
        waited / max(1, waited + served),
        engine_totals["preemptions"],
        engine_totals["cached_tokens"] / max(1, engine_totals["prompt_tokens"]),
        len(results) - len(good),
        latencies,
        {shape: sum(values) / len(values) for shape, values in sorted(shapes.items())},
    )
