"""The default load balancer keeps what Algorithm 2 of the paper gives, on the load for which it matters most."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_replay.closed_loop import Loop, run_loop

from benchmarks.paper.runs import Run, execute
from benchmarks.paper.sessions import coding_agents


@pytest.mark.parametrize("contender", ["vllm-opt", "program-plas"])
def test_the_default_balancer_is_not_behind_algorithm_2_on_coding_agents(contender: str) -> None:
    """Engines measure other prices by the calls they happen to run: once these decided, three of four engines idled."""
    run = Run(workload="coding", contender=contender, rate_per_s=0.01, seed=0, window_s=3600, engines=4)
    balancers = ("prefix_aware", "program_locality")
    figures = {balancer: execute(replace(run, balancer=balancer)) for balancer in balancers}
    assert figures["prefix_aware"].latency_s <= 1.02 * figures["program_locality"].latency_s
    assert figures["prefix_aware"].prefix_hits >= figures["program_locality"].prefix_hits - 0.02


def test_engines_with_host_memory_share_agents_that_stay_open() -> None:
    """Of 128 agents two of four engines once had a hundred: the calls that thrashed there were short, so they
    attracted more."""
    base = Run(workload="coding", contender="program-plas", rate_per_s=0.0, seed=0, engines=4, host_blocks=51_200)
    loop = Loop(concurrency=128, slo_ttft_s=30.0, duration_s=7200.0, warmup_s=3600.0)
    figures = {
        balancer: run_loop(replace(base, balancer=balancer).spec(), coding_agents(0, 1.0, 400), loop)
        for balancer in (Balancer.PREFIX_AWARE, Balancer.PROGRAM_LOCALITY)
    }
    share = figures[Balancer.PREFIX_AWARE].tokens_per_s / figures[Balancer.PROGRAM_LOCALITY].tokens_per_s
    assert share >= 0.95
