"""The default load balancer keeps what Algorithm 2 of the paper gives, on the load for which it matters most."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.paper.runs import Run, execute


@pytest.mark.parametrize("contender", ["vllm-opt", "program-plas"])
def test_the_default_balancer_is_not_behind_algorithm_2_on_coding_agents(contender: str) -> None:
    """Engines measure other prices by the calls they happen to run: once these decided, three of four engines idled."""
    run = Run(workload="coding", contender=contender, rate_per_s=0.01, seed=0, window_s=3600, engines=4)
    balancers = ("prefix_aware", "program_locality")
    figures = {balancer: execute(replace(run, balancer=balancer)) for balancer in balancers}
    assert figures["prefix_aware"].latency_s <= 1.02 * figures["program_locality"].latency_s
    assert figures["prefix_aware"].prefix_hits >= figures["program_locality"].prefix_hits - 0.02
