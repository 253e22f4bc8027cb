"""The default policy in an empty cluster: it must not lose to FCFS before it has learned anything (virtual time)."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from benchmarks.paper.runs import Run, execute

# Of mean program latency and time per token, as a share of FCFS.
BAR = 1.02
OVERLOADED = Run(workload="map-reduce", contender="auto", rate_per_s=0.3, seed=20, window_s=200.0)


def shares_of(base: str, run: Run, seeds: range) -> tuple[float, float]:
    """Means over seeds: (program latency, time per token) as shares of a contender's."""
    pairs = [(execute(replace(run, seed=seed)), execute(replace(run, seed=seed, contender=base))) for seed in seeds]
    return (
        fmean(one.latency_s / other.latency_s for one, other in pairs),
        fmean(one.token_ms / other.token_ms for one, other in pairs),
    )


@pytest.mark.parametrize(
    "run",
    [
        OVERLOADED,
        replace(OVERLOADED, workload="bfcl*1+map-reduce*0.4", rate_per_s=0.5),
        replace(OVERLOADED, workload="map-reduce*1+sharegpt*3", rate_per_s=0.4),
        replace(OVERLOADED, workload="sharegpt*1+map-reduce*0.1", rate_per_s=1.1),
    ],
    ids=lambda run: run.workload,
)
def test_programs_of_many_parallel_calls_are_not_slower_than_under_fcfs(run: Run) -> None:
    latency, token = shares_of("vllm-opt", run, range(20, 23))
    assert (latency <= BAR, token <= BAR) == (True, True)


def test_program_plas_would_be_far_slower_there() -> None:
    """Otherwise the tests above hold nothing."""
    latency, token = shares_of("vllm-opt", replace(OVERLOADED, contender="program-plas"), range(20, 22))
    assert latency > 1.3
    assert token > 1.3


def test_map_reduce_and_conversations_both_gain_from_a_level_for_the_former() -> None:
    """Neither preset of `auto` alone gives that."""
    for base in ("vllm-opt", "program-plas"):
        run = replace(OVERLOADED, workload="map-reduce*1+sharegpt*3", rate_per_s=0.4)
        latency, token = shares_of(base, run, range(20, 22))
        assert (latency < 0.75, token < 0.4) == (True, True), base


def test_what_levels_gain_on_conversations_is_kept_from_the_first_minute() -> None:
    chats = replace(OVERLOADED, workload="sharegpt", rate_per_s=1.2)
    latency, token = shares_of("program-plas", chats, range(20, 22))
    assert (latency <= BAR, token <= BAR) == (True, True)


def test_a_mixture_brings_the_programs_of_its_parts() -> None:
    mixture = replace(OVERLOADED, workload="bfcl*1+map-reduce*0.4", rate_per_s=0.5, contender="vllm-opt")
    parts = [
        replace(mixture, workload="bfcl"),
        replace(mixture, workload="map-reduce", rate_per_s=0.2),
    ]
    assert execute(mixture).programs == sum(execute(part).programs for part in parts)
