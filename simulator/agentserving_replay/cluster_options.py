"""The command-line options that choose the simulated cluster, shared by all commands that simulate one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from agentserving.contract.policy import Policy
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_simulator.cost_model import GPUS, MODELS, CostModel, cost_model
from agentserving_simulator.virtual.limits import EngineLimits

from agentserving_replay.cluster import ClusterSpec
from agentserving_replay.traces.file import RecordedCluster

_BALANCERS = [str(kind) for kind in Balancer]
_SLOTS = click.IntRange(1, 4096)
_OPTIONS = (
    click.option("--engines", type=click.IntRange(1, 256), help="Default: as recorded, or 1."),
    click.option("--balancer", type=click.Choice(_BALANCERS), help="Default: as recorded, or prefix_aware."),
    click.option("--gpu", type=click.Choice(list(GPUS)), default="a100-80gb", show_default=True),
    click.option("--model", type=click.Choice(list(MODELS)), default="llama-3.1-8b", show_default=True),
    click.option("--max-num-seqs", type=_SLOTS, help="Slots of an engine. Default: as recorded, or 48."),
    click.option("--no-prefix-caching", is_flag=True, help="As vLLM's flag of that name."),
    click.option("--host-gib", type=click.FloatRange(0, 1e5), default=0.0, help="Host memory for KV per engine."),
)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command; `SimulatedCluster.of` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCluster:
    """A simulated cluster without its policy."""

    gpu: str
    model: str
    cost: CostModel
    limits: EngineLimits
    engines: int
    balancer: Balancer

    @classmethod
    def of(
        cls,
        recorded: RecordedCluster | None,
        *,
        engines: int | None,
        balancer: str | None,
        gpu: str,
        model: str,
        max_num_seqs: int | None,
        no_prefix_caching: bool,
        host_gib: float,
    ) -> SimulatedCluster:
        """The options' values, or the recorded ones. ValueError for a model that does not fit on the GPU."""
        block_bytes = 16 * MODELS[model].kv_bytes_per_token
        limits = EngineLimits(
            max_num_seqs=max_num_seqs or (recorded.max_num_seqs if recorded else 48),
            prefix_caching=not no_prefix_caching,
            host_blocks=int(host_gib * 2**30 / block_bytes),
        )
        kind = Balancer(balancer) if balancer else (recorded.balancer if recorded else Balancer.PREFIX_AWARE)
        count = engines or (recorded.engines if recorded else 1)
        return cls(gpu=gpu, model=model, cost=cost_model(gpu, model), limits=limits, engines=count, balancer=kind)

    def under(self, policy: Policy) -> ClusterSpec:
        return ClusterSpec(
            policy=policy, cost=self.cost, limits=self.limits, engines=self.engines, balancer=self.balancer
        )

    def __str__(self) -> str:
        return f"{self.engines} x {self.gpu}, {self.model}"
