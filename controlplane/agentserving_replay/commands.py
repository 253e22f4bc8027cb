"""``agentserving replay``: what policies would have done to programs, found in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import click
from agentserving.policy import PRESETS
from agentserving_controlplane.load_balancer import Balancer
from agentserving_simulator.cost_model import GPUS, MODELS, cost_model
from agentserving_simulator.virtual_engine import EngineLimits
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.figures import Figures, figures
from agentserving_replay.trace import Program
from agentserving_replay.trace_file import read_trace
from agentserving_replay.workloads import WORKLOADS, generate

# Figure, what it is called, its form.
_ROWS = (
    ("token_ms", "token latency, mean (ms)", "{:.1f}"),
    ("token_p95_ms", "  p95", "{:.1f}"),
    ("token_p99_ms", "  p99", "{:.1f}"),
    ("latency_s", "program latency, mean (s)", "{:.2f}"),
    ("latency_p95_s", "  p95", "{:.2f}"),
    ("latency_p99_s", "  p99", "{:.2f}"),
    ("large_latency_p99_s", "  p99 of the largest tenth", "{:.2f}"),
    ("wait_share", "share of it waiting", "{:.1%}"),
    ("prefix_hits", "prompt tokens found cached", "{:.1%}"),
    ("preemptions", "preemptions", "{:d}"),
    ("makespan_s", "all done after (s)", "{:.0f}"),
)

_BALANCERS = [str(kind) for kind in Balancer]


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--workload", type=click.Choice(list(WORKLOADS)), help="Instead of a file: programs drawn like these.")
@click.option("--rate", type=click.FloatRange(0.001, 1e6), default=1.0, show_default=True, help="Of them, a second.")
@click.option("--programs", type=click.IntRange(1, 1_000_000), default=500, show_default=True, help="How many of them.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--policy", "policies", type=click.Choice(list(PRESETS)), multiple=True, help="May be given again.")
@click.option("--decision-interval", type=click.IntRange(1, 1024), default=8, show_default=True, help="Steps.")
@click.option("--engines", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--balancer", type=click.Choice(_BALANCERS), default="prefix_aware", show_default=True)
@click.option("--gpu", type=click.Choice(list(GPUS)), default="a100-80gb", show_default=True)
@click.option("--model", type=click.Choice(list(MODELS)), default="llama-3.1-8b", show_default=True)
@click.option("--max-num-seqs", type=click.IntRange(1, 4096), default=48, show_default=True, help="Slots of an engine.")
@click.option("--no-prefix-caching", is_flag=True, help="As vLLM with the flag of that name.")
@click.option("--host-gib", type=click.FloatRange(0, 1e5), default=0.0, help="Host memory of an engine for evicted KV.")
def replay(trace: Path | None, workload: str | None, rate: float, programs: int, seed: int, **chosen: object) -> None:
    """Run the programs of a TRACE, or drawn ones, in virtual time under one or more policies.

    The scheduler's, the load balancer's and the process table's code is that of a real cluster; only the GPU is a cost
    model. Same programs, same arrivals: the rows differ by policy alone.
    """
    if (trace is None) == (workload is None):
        raise click.UsageError("give a trace file or --workload, one of them")
    try:
        if trace is not None:
            with trace.open("rb") as lines:
                asked = read_trace(lines)
        else:
            asked = generate(str(workload), seed, rate, programs)
        _run(asked, **chosen)  # type: ignore[arg-type]
    except ValueError as error:
        raise click.ClickException(f"{trace}: {error}" if trace else str(error)) from error


def _run(
    programs: list[Program],
    *,
    policies: tuple[str, ...],
    decision_interval: int,
    engines: int,
    balancer: str,
    gpu: str,
    model: str,
    max_num_seqs: int,
    no_prefix_caching: bool,
    host_gib: float,
) -> None:
    cost = cost_model(gpu, model)
    block_bytes = 16 * MODELS[model].kv_bytes_per_token
    limits = EngineLimits(
        max_num_seqs=max_num_seqs,
        prefix_caching=not no_prefix_caching,
        host_blocks=int(host_gib * 2**30 / block_bytes),
    )
    console = Console()
    names = policies or ("fcfs", "atlas")
    told = {}
    with Progress(console=console, transient=True) as progress:
        for name in names:
            policy = replace(PRESETS[name], decision_interval_steps=decision_interval)
            cluster = VirtualCluster(ClusterSpec(policy, cost, limits, engines, Balancer(balancer)))
            told[name] = _followed(cluster, programs, progress, name)
    table = Table("", title=f"{len(programs)} programs on {engines} x {gpu}, {model}")
    for name in names:
        table.add_column(name, justify="right")
    for key, heading, form in _ROWS:
        table.add_row(heading, *(form.format(getattr(told[name], key)) for name in names))
    console.print(table)


def _followed(cluster: VirtualCluster, programs: list[Program], progress: Progress, name: str) -> Figures:
    """Runs it a minute at a time, with a bar."""
    bar = progress.add_task(name, total=len(programs))
    cluster.add(programs)
    while cluster.next_s < math.inf:
        cluster.run(cluster.next_s + 60)
        progress.update(bar, completed=len(cluster.results))
    return figures(cluster, cluster.results)
