"""Figures of a run in virtual time, as the paper defines them. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from agentserving_replay.cluster import VirtualCluster
from agentserving_replay.results import ProgramResult

# Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom. Larger samples use the last one, which makes their
# intervals slightly too wide.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of one run.

    Latencies are means and percentiles over programs. Token latency is response time per token, tools excluded (paper,
    section 6).
    """

    programs: int
    token_ms: float
    token_p95_ms: float
    token_p99_ms: float
    latency_s: float
    latency_p95_s: float
    latency_p99_s: float
    # Over the tenth of the programs with the most service, at whose expense short programs gain.
    large_latency_p99_s: float
    wait_share: float
    makespan_s: float
    tokens_per_s: float
    prefix_hits: float
    calls_in_engine: float
    preemptions: int
    recomputed: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def figures(cluster: VirtualCluster, results: Sequence[ProgramResult]) -> Figures:
    """Figures of a run that has ended. ValueError when no program has."""
    if not results:
        raise ValueError("no program has ended, so there are no figures")
    tokens = [1000 * result.token_latency_s for result in results]
    latencies = [result.latency_s for result in results]
    by_service = sorted(results, key=lambda result: result.service_s)
    large = [result.latency_s for result in by_service[-max(1, len(results) // 10) :]]
    waits = [result.wait_s / (result.wait_s + result.service_s) for result in results if result.service_s]
    counters = [engine.model.counters for engine in cluster.engines]
    output = sum(c.output_tokens for c in counters)
    prompts = sum(c.prompt_tokens for c in counters)
    needed = prompts + output - sum(c.cached_tokens for c in counters)
    seconds = cluster.now_us / 1e6
    return Figures(
        programs=len(results),
        token_ms=statistics.fmean(tokens),
        token_p95_ms=percentile(tokens, 0.95),
        token_p99_ms=percentile(tokens, 0.99),
        latency_s=statistics.fmean(latencies),
        latency_p95_s=percentile(latencies, 0.95),
        latency_p99_s=percentile(latencies, 0.99),
        large_latency_p99_s=percentile(large, 0.99),
        wait_share=statistics.fmean(waits) if waits else 0.0,
        makespan_s=seconds,
        tokens_per_s=output / seconds,
        prefix_hits=sum(c.cached_tokens for c in counters) / max(1, prompts),
        calls_in_engine=sum(c.call_us for c in counters) / max(1, cluster.now_us) / len(counters),
        preemptions=sum(c.preemptions_proactive + c.preemptions_reactive for c in counters),
        recomputed=sum(c.computed_tokens for c in counters) / max(1, needed) - 1,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval over independent runs; infinite for a single run."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    t95 = _T95[min(len(values) - 1, len(_T95)) - 1]
    return mean, t95 * statistics.stdev(values) / math.sqrt(len(values))
