"""A closed loop in virtual time: N programs are open, the next one starts when one ends. Its figures at an SLO. Pure.

An open loop says how long programs take at a rate; beyond saturation its queue grows without bound. A closed loop asks
what a team buys: how many agents an engine carries while calls still start in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import msgspec
from agentserving.contract.ids import ProgramId

from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.figures import percentile
from agentserving_replay.results import CallResult
from agentserving_replay.traces.trace import Program

# The first programs start over this time, so that their calls are not in step; at most a quarter of the warm-up.
RAMP_S = 300.0
# Virtual seconds between two reports of progress.
SLICE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """How a closed loop runs: for `duration_s`, of which the first `warmup_s` are not counted."""

    concurrency: int
    slo_ttft_s: float
    duration_s: float = 3600.0
    warmup_s: float = 900.0
    # Longest time between two calls of a program; None = as recorded.
    cap_think_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopFigures:
    """Figures of a closed loop after its warm-up.

    Tokens a second and prefix hits are those of calls that ended. `goodput` counts only output tokens of calls whose
    first token came within the SLO. Times to first token are those of calls that got it, and of calls that still wait
    at the end their wait so far: a call that never starts must not improve the percentiles.
    """

    concurrency: int
    engines: int
    tokens_per_s: float
    goodput: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    gpu_hits: float
    host_hits: float
    calls: int
    programs: int
    in_time: bool


def endless(programs: Sequence[Program], cap_think_s: float | None = None) -> Iterator[Program]:
    """The programs in their order, again and again, with new ids and think times of at most `cap_think_s`."""
    capped = [capped_think(program, cap_think_s) for program in programs]
    for lap in count():
        for index, program in enumerate(capped):
            yield replace(program, program_id=ProgramId(f"{lap}.{index}"))


def capped_think(program: Program, cap_s: float | None) -> Program:
    """The program with no call later than `cap_s` after its parents."""
    if cap_s is None:
        return program
    return replace(
        program, calls=tuple(msgspec.structs.replace(call, gap_s=min(call.gap_s, cap_s)) for call in program.calls)
    )


def run_loop(
    spec: ClusterSpec, programs: Sequence[Program], loop: Loop, tick: Callable[[float], None] = lambda now_s: None
) -> LoopFigures:
    """Runs a closed loop. ValueError when fewer programs exist than are to be open. `tick` is called with the time."""
    if loop.concurrency > len(programs):
        raise ValueError(
            f"--concurrency {loop.concurrency}: only {len(programs)} programs, so as many cannot be open at a time"
        )
    cluster = VirtualCluster(spec)
    cluster.keep_open(endless(programs, loop.cap_think_s), loop.concurrency, min(RAMP_S, loop.warmup_s / 4))
    now_s = 0.0
    while now_s < loop.duration_s:
        now_s = min(now_s + SLICE_S, loop.duration_s)
        cluster.run(now_s)
        tick(now_s)
    ended = sum(result.arrival_s + result.latency_s >= loop.warmup_s for result in cluster.results)
    return loop_figures(loop, spec.engines, cluster.calls, cluster.open_calls(), ended)


def loop_figures(
    loop: Loop, engines: int, ended: Iterable[CallResult], still_open: Iterable[CallResult], programs: int
) -> LoopFigures:
    """Figures of a loop from its calls. ValueError when none ended after the warm-up."""
    begin_us, end_us = int(loop.warmup_s * 1e6), int(loop.duration_s * 1e6)
    counted = [call for call in ended if call.ended_us >= begin_us]
    if not counted:
        raise ValueError(f"no call ended in {loop.duration_s - loop.warmup_s:.0f} s after the warm-up: run longer")
    open_now = list(still_open)
    started = [call for call in (*counted, *open_now) if not 0 < call.first_token_us < begin_us]
    ttfts = [call.ttft_s(end_us) for call in started]
    seconds = loop.duration_s - loop.warmup_s
    good = sum(call.output_tokens for call in counted if call.ttft_s(end_us) <= loop.slo_ttft_s)
    prompts = sum(call.prompt_tokens for call in counted)
    p90 = percentile(ttfts, 0.9)
    return LoopFigures(
        concurrency=loop.concurrency,
        engines=engines,
        tokens_per_s=sum(call.output_tokens for call in counted) / seconds,
        goodput=good / seconds,
        ttft_p50_s=percentile(ttfts, 0.5),
        ttft_p90_s=p90,
        ttft_p99_s=percentile(ttfts, 0.99),
        gpu_hits=sum(call.gpu_tokens for call in counted) / prompts,
        host_hits=sum(call.host_tokens for call in counted) / prompts,
        calls=len(counted),
        programs=programs,
        in_time=p90 <= loop.slo_ttft_s,
    )


def agents_per_engine(runs: Iterable[LoopFigures]) -> float:
    """The largest concurrency per engine within the SLO, below which all others that were tried are, too; 0 if none."""
    most = 0.0
    for run in sorted(runs, key=lambda run: run.concurrency):
        if not run.in_time:
            break
        most = run.concurrency / run.engines
    return most
