"""Lower bounds hold for every policy, and are tight where they can be."""

from __future__ import annotations

import statistics

import pytest
from agentserving.contract.policy import FCFS, PLAS, PROGRAM_PLAS
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.tuning.bounds import bounds, srpt_mean_s
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import cost_model
from agentserving_simulator.virtual.limits import EngineLimits
from hypothesis import given, settings
from hypothesis import strategies as st

A100 = cost_model("a100-80gb", "llama-3.1-8b")


@pytest.mark.parametrize("policy", [FCFS, PLAS, PROGRAM_PLAS], ids=lambda policy: policy.name)
@pytest.mark.parametrize("workload", ["sharegpt", "bfcl", "map-reduce"])
@pytest.mark.parametrize("engines", [1, 2])
def test_no_policy_beats_the_bounds(workload: str, policy, engines: int) -> None:
    programs = generate(workload, 3, 3.0, 60)
    cluster = VirtualCluster(ClusterSpec(policy=policy, cost=A100, limits=EngineLimits(16), engines=engines))
    cluster.add(programs)
    results = cluster.run()
    least = bounds(programs, A100, 16, engines)
    assert statistics.fmean(result.latency_s for result in results) >= least.latency_s
    assert 1000 * statistics.fmean(result.token_latency_s for result in results) >= least.token_ms


def test_a_lone_program_takes_its_critical_path() -> None:
    programs = generate("bfcl", 0, 1e-4, 20)
    cluster = VirtualCluster(ClusterSpec(policy=FCFS, cost=A100))
    cluster.add(programs)
    results = cluster.run()
    least = bounds(programs, A100, 48)
    assert statistics.fmean(result.latency_s for result in results) == pytest.approx(least.latency_s, rel=0.02)
    assert 1000 * statistics.fmean(r.token_latency_s for r in results) == pytest.approx(least.token_ms, rel=0.05)


def test_the_shortest_remaining_job_goes_first() -> None:
    # 0..1 the first, 1..2 the second that came at 1, 2..11 the rest of the first.
    assert srpt_mean_s([(0, 10), (1, 1)]) == pytest.approx((11 + 1) / 2)
    assert srpt_mean_s([]) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 10)), min_size=1, max_size=30))
def test_no_order_of_whole_jobs_has_a_lower_mean(jobs: list[tuple[float, float]]) -> None:
    now = total = 0.0
    for arrival, work in sorted(jobs):
        now = max(now, arrival) + work
        total += now - arrival
    assert srpt_mean_s(jobs) <= total / len(jobs) + 1e-9


def test_an_empty_trace_has_no_bounds() -> None:
    with pytest.raises(ValueError, match="no programs"):
        bounds([], A100, 48)
