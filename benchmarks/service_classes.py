"""Interactive chats with a flood of batch work, in virtual time with the production code: what the flood costs them.

``python -m benchmarks.service_classes [--seeds N] [--policy NAME]`` prints a table. The same chats (ShareGPT-like)
arrive at a third of what one engine serves: alone; with twice as many map-reduce programs as it serves, in the class
batch; and with the same work without classes. Waits are those of single calls in the engine's queue,
preemptions included; a call that still waits at the end counts with its wait so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
from agentserving.contract.ids import CallId, ProgramId
from agentserving.contract.policy import DEFAULT, PRESETS, preset
from agentserving.contract.service_class import ServiceClass
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.figures import interval, percentile
from agentserving_replay.traces.trace import Program
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import cost_model
from agentserving_simulator.virtual.limits import EngineLimits
from agentserving_simulator.virtual.requests import Ended
from rich.console import Console
from rich.table import Table

WINDOW_S = 900.0
CHATS, WORK = "sharegpt", "map-reduce"
# Of what the engine serves when nothing else is there.
CHAT_LOAD, FLOOD = 1 / 3, 2.0
INTERACTIVE, STANDARD, BATCH = ServiceClass.INTERACTIVE, ServiceClass.STANDARD, ServiceClass.BATCH
SETTINGS = ("alone", "batch", "no classes")


class Watched(VirtualCluster):
    """Notes the wait of each call of the chats, and the output tokens of everything."""

    def __init__(self, spec: ClusterSpec) -> None:
        super().__init__(spec)
        self.waits_s: list[float] = []
        self.first_tokens_s: list[float] = []
        self.tokens = dict.fromkeys((CHATS, WORK), 0)
        self.longest_wait_s = 0.0

    def _ended(self, engine: Any, ended: Ended) -> None:
        name = self._calls[CallId(ended.request.key)][0].program.name
        self.tokens[name] += ended.request.output
        if name == CHATS:
            self.waits_s.append(ended.stats.wait_us / 1e6)
            self.first_tokens_s.append((ended.request.first_token_us - ended.request.arrived_us) / 1e6)
        else:
            self.longest_wait_s = max(self.longest_wait_s, ended.stats.wait_us / 1e6)
        super()._ended(engine, ended)

    def count_open(self) -> None:
        """Calls that have not ended count with what they have waited so far."""
        for engine in self.engines:
            for key, request in engine.model.requests.items():
                stats = engine.model.queue.stats(key, self.now_us)
                if stats is None or self._calls[CallId(key)][0].program.name != CHATS:
                    continue
                self.waits_s.append(stats.wait_us / 1e6)
                self.first_tokens_s.append(((request.first_token_us or self.now_us) - request.arrived_us) / 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a window; seconds, and output tokens a second."""

    wait_p50_s: float
    wait_p99_s: float
    first_token_p50_s: float
    first_token_p99_s: float
    chat_tokens_per_s: float
    work_tokens_per_s: float


def spec_of(policy: str) -> ClusterSpec:
    """One engine: Llama 3.1 8B on an A100-80GB, 48 slots, a decision every 8 steps, as in docs/results."""
    chosen = replace(preset(policy), decision_interval_steps=8)
    return ClusterSpec(policy=chosen, cost=cost_model("a100-80gb", "llama-3.1-8b"), limits=EngineLimits(48))


def capacity(spec: ClusterSpec, workload: str) -> float:
    """Programs a second that the engine serves: 200 that are there from the beginning, by the time until the last."""
    cluster = VirtualCluster(spec)
    cluster.add(replace(program, arrival_s=0.0) for program in generate(workload, 0, 1.0, 200))
    cluster.run()
    return 200 / (cluster.now_us / 1e6)


def programs(workload: str, seed: int, rate_per_s: float, kind: ServiceClass) -> list[Program]:
    """The arrivals of a window."""
    drawn = generate(workload, seed, rate_per_s, round(rate_per_s * WINDOW_S))
    return [
        replace(each, program_id=ProgramId(f"{workload}-{number}"), service_class=kind)
        for number, each in enumerate(drawn)
    ]


def run(spec: ClusterSpec, seed: int, setting: str, rates: dict[str, float]) -> Run:
    """One window of a setting."""
    classes = setting != "no classes"
    cluster = Watched(spec)
    cluster.add(programs(CHATS, seed, CHAT_LOAD * rates[CHATS], INTERACTIVE if classes else STANDARD))
    if setting != "alone":
        cluster.add(programs(WORK, seed, FLOOD * rates[WORK], BATCH if classes else STANDARD))
    cluster.run(WINDOW_S)
    cluster.count_open()
    return Run(
        wait_p50_s=percentile(cluster.waits_s, 0.5),
        wait_p99_s=percentile(cluster.waits_s, 0.99),
        first_token_p50_s=percentile(cluster.first_tokens_s, 0.5),
        first_token_p99_s=percentile(cluster.first_tokens_s, 0.99),
        chat_tokens_per_s=cluster.tokens[CHATS] / WINDOW_S,
        work_tokens_per_s=cluster.tokens[WORK] / WINDOW_S,
    )


def _with_interval(values: Sequence[float], digits: str = ".3g") -> str:
    mean, half = interval(values)
    return f"{mean:{digits}} ({mean - half:{digits}} to {mean + half:{digits}})"


def table(policy: str, runs: dict[str, list[Run]]) -> Table:
    """Means over the seeds with 95 % intervals, and ratios seed by seed."""
    shown = Table(title=f"{policy}, {len(runs['alone'])} seeds", box=None)
    for title in ("", *SETTINGS, "batch / alone", "no classes / batch"):
        shown.add_column(title)
    for name in Run.__dataclass_fields__:
        of = {setting: [getattr(each, name) for each in runs[setting]] for setting in SETTINGS}
        cells = [_with_interval(of[setting]) for setting in SETTINGS]
        for over, under in (("batch", "alone"), ("no classes", "batch")):
            pairs = list(zip(of[over], of[under], strict=True))
            ratios = [a / b for a, b in pairs if b]
            cells.append(_with_interval(ratios) if len(ratios) == len(pairs) else "-")
        shown.add_row(name, *cells)
    return shown


@click.command()
@click.option("--seeds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--policy", "policies", type=click.Choice(list(PRESETS)), multiple=True, default=(DEFAULT.name,))
def main(seeds: int, policies: tuple[str, ...]) -> None:
    """Measure what a flood of batch work costs interactive chats."""
    console = Console(width=200)
    for policy in policies:
        spec = spec_of(policy)
        rates = {workload: capacity(spec, workload) for workload in (CHATS, WORK)}
        console.print({workload: f"{rate:.3g} programs/s" for workload, rate in rates.items()})
        runs = {setting: [run(spec, seed, setting, rates) for seed in range(1, seeds + 1)] for setting in SETTINGS}
        console.print(table(policy, runs))


if __name__ == "__main__":
    main()
