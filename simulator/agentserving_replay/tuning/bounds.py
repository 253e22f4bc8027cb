"""Lower bounds on latency that hold for every scheduler, for a trace on given engines. Pure.

A program takes at least its critical path, with every call alone on an engine and every repeated token cached. Together
the programs share memory bandwidth and arithmetic: for each of the two, the mean latency is at least that of a single
server with the speed of all engines that always serves the program with the least remaining work (SRPT).
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from agentserving_simulator.cost_model import CostModel

from agentserving_replay.traces.trace import Call, Program


@dataclass(frozen=True, slots=True)
class Bounds:
    """Lower bounds on mean program latency (s) and on mean response time per token (ms, tools excluded)."""

    latency_s: float
    token_ms: float


def _alone_us(call: Call, cost: CostModel) -> float:
    """Duration of a call on an idle engine; the prefill step generates the first token."""
    new = call.prompt_tokens - call.shared_tokens
    pairs = new * (call.shared_tokens + new / 2)
    prefill = cost.step_us(new, call.prompt_tokens, 1, pairs)
    return prefill + (cost.decode_us(1, call.prompt_tokens, call.output_tokens - 1) if call.output_tokens > 1 else 0)


def critical_path_s(program: Program, cost: CostModel) -> tuple[float, float]:
    """Latency of a program that runs alone, and the same without tool times; seconds."""
    ends: list[float] = []
    computed: list[float] = []
    for call in program.calls:
        last = max(call.parents, key=lambda parent: ends[parent], default=None)
        begun, before = (ends[last], computed[last]) if last is not None else (0.0, 0.0)
        took = _alone_us(call, cost) / 1e6
        ends.append(begun + call.gap_s + took)
        computed.append(before + took)
    return max(ends), max(computed)


def work_s(program: Program, cost: CostModel, max_num_seqs: int) -> tuple[float, float]:
    """Seconds of an engine's memory bandwidth and of its arithmetic that a program needs in full batches."""
    memory = compute = 0.0
    for call in program.calls:
        new, decoded = call.prompt_tokens - call.shared_tokens, call.output_tokens - 1
        context = call.prompt_tokens + decoded / 2
        fixed = cost.base_us / max_num_seqs + cost.call_us
        memory += decoded * (cost.read_us(max_num_seqs) / max_num_seqs + cost.kv_us_per_token * context + fixed)
        compute += cost.compute_us_per_token * (new + decoded) + decoded * fixed
        compute += cost.attention_us_per_pair * new * (call.shared_tokens + new / 2)
    return memory / cost.speed / 1e6, compute / cost.speed / 1e6


def srpt_mean_s(jobs: Sequence[tuple[float, float]]) -> float:
    """Mean latency of (arrival, work) jobs on a preemptive server that serves the least remaining work; seconds."""
    if not jobs:
        return 0.0
    waiting: list[tuple[float, float]] = []
    now, total = 0.0, 0.0
    for arrival, work in [*sorted(jobs), (float("inf"), 0.0)]:
        while waiting and now < arrival:
            remaining, arrived = heapq.heappop(waiting)
            if now + remaining > arrival:
                heapq.heappush(waiting, (remaining - (arrival - now), arrived))
                break
            now += remaining
            total += now - arrived
        now = arrival
        heapq.heappush(waiting, (work, arrival))
    return total / len(jobs)


def bounds(programs: Sequence[Program], cost: CostModel, max_num_seqs: int, engines: int = 1) -> Bounds:
    """Bounds of a trace. ValueError for an empty one."""
    if not programs:
        raise ValueError("no programs, so there are no bounds")
    paths = [critical_path_s(program, cost) for program in programs]
    works = [work_s(program, cost, max_num_seqs) for program in programs]
    shared = (
        srpt_mean_s([(p.arrival_s, work[resource] / engines) for p, work in zip(programs, works, strict=True)])
        for resource in (0, 1)
    )
    tokens = (1000 * path[1] / max(1, p.output_tokens) for p, path in zip(programs, paths, strict=True))
    return Bounds(max(statistics.fmean(path[0] for path in paths), *shared), statistics.fmean(tokens))
