"""One run: programs of a workload at a rate, under one contender; and the execution of many runs in parallel."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.figures import Figures, figures
from agentserving_replay.traces.trace import Program
from agentserving_replay.tuning.bounds import Bounds, bounds
from agentserving_replay.workloads import generate, poisson
from agentserving_simulator.cost_model import cost_model
from agentserving_simulator.virtual.limits import EngineLimits

from benchmarks.paper.bursts import bursts
from benchmarks.paper.contenders import CONTENDERS
from benchmarks.paper.sessions import coding_agents


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`rate_per_s` programs per second arrive for `window_s` seconds, or `programs` in total; all run to their end."""

    # Several are joined by "+", each with its share of the rate: "bfcl*1+map-reduce*0.4".
    workload: str
    contender: str
    rate_per_s: float
    seed: int
    window_s: float = 1200.0
    gpu: str = "a100-80gb"
    model: str = "llama-3.1-8b"
    max_num_seqs: int = 48
    engines: int = 1
    balancer: str = "prefix_aware"
    num_blocks: int = 0
    host_blocks: int = 0
    programs: int = 0
    # Arrivals come in bursts (`bursts`), not as a Poisson stream.
    bursty: bool = False
    # Name of the variation, for tables and pictures.
    tag: str = ""

    def spec(self) -> ClusterSpec:
        """The cluster that runs it."""
        contender = CONTENDERS[self.contender]
        limits = EngineLimits(self.max_num_seqs, num_blocks=self.num_blocks, host_blocks=self.host_blocks)
        return ClusterSpec(
            policy=contender.policy,
            cost=cost_model(self.gpu, self.model),
            limits=contender.limits(limits),
            engines=self.engines,
            balancer=Balancer(self.balancer),
            clairvoyant=contender.clairvoyant,
        )


def _at_most(run: Run) -> int:
    """An upper bound on the programs that arrive in the window."""
    mean = run.rate_per_s * run.window_s
    return int(mean + 6 * mean**0.5 + 10)


def _programs(run: Run) -> list[Program]:
    if "+" in run.workload:
        parts = [part.split("*") for part in run.workload.split("+")]
        each = [replace(run, workload=name, rate_per_s=run.rate_per_s * float(share)) for name, share in parts]
        return sorted((program for part in each for program in _programs(part)), key=lambda one: one.arrival_s)
    arrive = bursts if run.bursty else poisson
    draw = coding_agents if run.workload == "coding" else partial(generate, run.workload, arrive=arrive)
    # A burst may bring several times the mean.
    most = run.programs or _at_most(run) * (10 if run.bursty else 1)
    programs = draw(run.seed, run.rate_per_s, most)
    return [program for program in programs if program.arrival_s < run.window_s]


def execute(run: Run) -> Figures:
    """Executes one run in virtual time."""
    cluster = VirtualCluster(run.spec())
    cluster.add(_programs(run))
    return figures(cluster, cluster.run())


def bounds_of(run: Run) -> Bounds:
    """Lower bounds for the programs of a run."""
    return bounds(_programs(run), cost_model(run.gpu, run.model), run.max_num_seqs, run.engines)


def _numbered(task: tuple[int, Run]) -> tuple[int, Figures]:
    return task[0], execute(task[1])


def execute_all(runs: Iterable[Run], processes: int) -> Iterator[tuple[Run, Figures]]:
    """Executes the runs on `processes` processes; yields each as it finishes."""
    pending = list(runs)
    if processes < 2:
        yield from ((run, execute(run)) for run in pending)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        # The longest runs first, so that the last ones do not run alone.
        order = sorted(enumerate(pending), key=lambda task: -task[1].rate_per_s * task[1].engines)
        for number, figures_of_run in pool.imap_unordered(_numbered, order):
            yield pending[number], figures_of_run
