"""``python small_experiments.py``: prints what every policy gives in small experiments, as JSON.

The engines are small enough for calls to wait, starve and be preempted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from agentserving.contract.policy import PRESETS, Policy
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import cost_model
from agentserving_simulator.virtual.limits import EngineLimits

# (workload, engines, programs per second, programs)
EXPERIMENTS = (("sharegpt", 1, 3.0, 20), ("bfcl", 1, 2.0, 20), ("map-reduce", 1, 4.0, 24), ("map-reduce", 2, 8.0, 32))


def results(preset: Policy, workload: str, engines: int, rate_per_s: float, count: int) -> list[dict[str, object]]:
    """All digits of the results of the programs, in the order of their ends."""
    policy = replace(preset, decision_interval_steps=8)
    limits = EngineLimits(16, num_blocks=6_000)
    cost = cost_model("a100-80gb", "llama-3.1-8b")
    cluster = VirtualCluster(ClusterSpec(policy=policy, cost=cost, limits=limits, engines=engines))
    cluster.add(generate(workload, 7, rate_per_s, count))
    return [asdict(result) for result in cluster.run()]


if __name__ == "__main__":
    print(
        json.dumps(
            {
                name: {f"{each[0]} on {each[1]}": results(policy, *each) for each in EXPERIMENTS}
                for name, policy in PRESETS.items()
            }
        )
    )
