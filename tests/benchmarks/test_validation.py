"""The comparison with a real engine recovers the engine's speed from the service that its plugin charges."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from agentserving.contract.policy import PRESETS
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.traces.trace import Program
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.virtual.limits import EngineLimits

from benchmarks.validation import Calibration, between, checked, fitting, run_virtual

LIMITS = EngineLimits(max_num_seqs=8, num_blocks=4000)
# About a CPU engine: 4 ms a step, more for each call and each token of a prompt.
CALIBRATED = CostModel(weights_us=0.0, kv_us_per_token=0.02, compute_us_per_token=60.0, base_us=4000.0, call_us=150.0)
# The charged share of a full batch's steps, and the engine's speed under load.
CHARGED, SLOWER = 0.85, 0.8
# The uncharged part of a step is 15 % of 5.5 ms.
GAP_US = 0.15 * CALIBRATED.step_us(8, 8 * 182, 8)


def served(programs: list[Program], policy: str) -> tuple[list[float], float]:
    """Latencies and charged service of an engine that is slower than in calibration."""
    cluster = VirtualCluster(ClusterSpec(policy=PRESETS[policy], cost=replace(CALIBRATED, speed=SLOWER), limits=LIMITS))
    cluster.add(programs)
    results = {result.arrival_s: result for result in cluster.run()}
    steps_us = sum(result.service_s for result in results.values()) * 1e6
    gaps_us = GAP_US / SLOWER * sum(program.output_tokens for program in programs)
    return [results[program.arrival_s].latency_s for program in programs], steps_us - gaps_us


@pytest.mark.parametrize("policy", ["fcfs", "plas"])
def test_the_time_between_steps_is_added_to_virtual_time(policy: str) -> None:
    programs = fitting(CALIBRATED, generate("sharegpt", 3, 3.0, 80), load=1.1)
    real, charged_us = served(programs, policy)
    virtual, cost = run_virtual(programs, PRESETS[policy], Calibration(CALIBRATED, 0.0, CHARGED), LIMITS, charged_us)
    assert cost.speed == pytest.approx(SLOWER, rel=0.02)
    assert statistics.fmean(virtual) == pytest.approx(statistics.fmean(real), rel=0.03)
    fast, _ = run_virtual(programs, PRESETS[policy], Calibration(CALIBRATED, 0.0, 1.0), LIMITS, charged_us)
    assert statistics.fmean(fast) < 0.9 * statistics.fmean(real), "without it, programs end too early in virtual time"


def test_a_calibration_with_an_implausible_charge_is_refused() -> None:
    right = Calibration(CALIBRATED, 0.002, 0.85)
    assert checked(right) == right
    for share in (0.0, 1.2):
        with pytest.raises(ValueError, match="measure again on a quiet machine"):
            checked(replace(right, charged=share))


def test_two_calibrations_have_a_mean() -> None:
    other = Calibration(replace(CALIBRATED, base_us=6000.0), 0.004, 0.9)
    mean = between(Calibration(CALIBRATED, 0.002, 0.8), other)
    assert (mean.cost.base_us, mean.cost.call_us) == (5000.0, 150.0)
    assert mean.overhead_s == pytest.approx(0.003)
    assert mean.charged == pytest.approx(0.85)
