"""Figures of one run of a load. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class ProgramResult(Protocol):
    """A program's run, as its user saw it (agentserving_cli.load)."""

    program_id: str
    shape: str
    latency_s: float
    output_tokens: int
    calls: int
    failed: bool


class ProgramAccount(Protocol):
    """A program's row in the process table (agentserving.client.values.Program)."""

    @property
    def wait_us(self) -> int:
        """Time that its calls were queued."""

    @property
    def total_service_us(self) -> int:
        """Model-execution time of its calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTotals:
    """Counters of all engines together."""

    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: EngineTotals) -> EngineTotals:
        return EngineTotals(
            preemptions=self.preemptions + other.preemptions,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )

    def since(self, earlier: EngineTotals) -> EngineTotals:
        """What was counted after `earlier`."""
        return EngineTotals(
            preemptions=self.preemptions - earlier.preemptions,
            prompt_tokens=self.prompt_tokens - earlier.prompt_tokens,
            cached_tokens=self.cached_tokens - earlier.cached_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Over programs; token latency is a program's latency by its output tokens (paper, section 6).

    tokens_per_s: output tokens of all programs, those that are not counted included.
    """

    policy: str
    latency_mean_s: float
    latency_p95_s: float
    latency_p99_s: float
    token_latency_mean_ms: float
    token_latency_p95_ms: float
    tokens_per_s: float
    wait_share: float
    preemptions: int
    prefix_hits: float
    failed: int
    latencies_s: list[float] = field(default_factory=list)
    per_token_ms: list[float] = field(default_factory=list)
    shapes: dict[str, float] = field(default_factory=dict)


def quantile(values: Sequence[float], q: float) -> float:
    """Linear between ranks; 0 for no values."""
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
    accounts: Mapping[str, ProgramAccount],
    engines: EngineTotals,
    *,
    tokens_per_s: float,
) -> Summary:
    """From programs' own clocks, the process table and the engines' counters. Programs without a row count no wait."""
    good = [result for result in results if not result.failed]
    latencies = [result.latency_s for result in good]
    per_token = [1000 * result.latency_s / max(1, result.output_tokens) for result in good]
    rows = [accounts[result.program_id] for result in good if result.program_id in accounts]
    waited, served = sum(row.wait_us for row in rows), sum(row.total_service_us for row in rows)
    shapes: dict[str, list[float]] = {}
    for result in good:
        shapes.setdefault(result.shape, []).append(result.latency_s)
    return Summary(
        policy=policy,
        latency_mean_s=sum(latencies) / max(1, len(latencies)),
        latency_p95_s=quantile(latencies, 0.95),
        latency_p99_s=quantile(latencies, 0.99),
        token_latency_mean_ms=sum(per_token) / max(1, len(per_token)),
        token_latency_p95_ms=quantile(per_token, 0.95),
        tokens_per_s=tokens_per_s,
        wait_share=waited / max(1, waited + served),
        preemptions=engines.preemptions,
        prefix_hits=engines.cached_tokens / max(1, engines.prompt_tokens),
        failed=len(results) - len(good),
        latencies_s=latencies,
        per_token_ms=per_token,
        shapes={shape: sum(values) / len(values) for shape, values in sorted(shapes.items())},
    )
