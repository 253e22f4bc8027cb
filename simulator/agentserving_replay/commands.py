"""``agentserving replay``: what policies would have done to programs, found in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from agentserving.contract.policy import DEFAULT, PRESETS, Policy
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agentserving_replay.cluster import VirtualCluster
from agentserving_replay.cluster_options import Simulated, cluster_options
from agentserving_replay.figures import Figures, figures
from agentserving_replay.traces.file import Recorded, read_recording
from agentserving_replay.traces.trace import Program
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

# The policy that a recording names.
RECORDED = "recorded"


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--workload", type=click.Choice(list(WORKLOADS)), help="Instead of a file: programs drawn like these.")
@click.option("--rate", type=click.FloatRange(0.001, 1e6), default=1.0, show_default=True, help="Of them, a second.")
@click.option("--programs", type=click.IntRange(1, 1_000_000), default=500, show_default=True, help="How many of them.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--policy", "policies", type=click.Choice([*PRESETS, RECORDED]), multiple=True,
    help="May be given again; `recorded` is the one that a recording names.",
)  # fmt: skip
@click.option("--decision-interval", type=click.IntRange(1, 1024), default=8, show_default=True, help="Steps.")
@cluster_options
def replay(trace: Path | None, workload: str | None, rate: float, programs: int, seed: int, **chosen: object) -> None:
    """Run the programs of a TRACE, or drawn ones, in virtual time under one or more policies.

    The scheduler's, the load balancer's and the process table's code is that of a real cluster; only the GPU is a cost
    model. Same programs, same arrivals: the rows differ by policy alone.
    """
    if (trace is None) == (workload is None):
        raise click.UsageError("give a trace file or --workload, one of them")
    recorded = None
    try:
        if trace is not None:
            with trace.open("rb") as lines:
                recorded, asked = read_recording(lines)
        else:
            asked = generate(str(workload), seed, rate, programs)
        _run(asked, recorded, **chosen)  # type: ignore[arg-type]
    except ValueError as error:
        raise click.ClickException(f"{trace}: {error}" if trace else str(error)) from error


def policy_named(name: str, recorded: Recorded | None) -> Policy:
    """A preset, or the policy of a recording. UsageError when there is none."""
    if name != RECORDED:
        return PRESETS[name]
    if recorded is None:
        raise click.UsageError("the trace does not say under which policy it was recorded: name a preset")
    return recorded.policy


def _run(
    programs: list[Program],
    recorded: Recorded | None,
    *,
    policies: tuple[str, ...],
    decision_interval: int,
    **chosen: Any,
) -> None:
    simulated = Simulated.of(recorded, **chosen)
    console = Console()
    names = policies or ("fcfs", DEFAULT.name)
    values = [replace(policy_named(name, recorded), decision_interval_steps=decision_interval) for name in names]
    told = {}
    with Progress(console=console, transient=True) as progress:
        for name, policy in zip(names, values, strict=True):
            told[name] = _followed(VirtualCluster(simulated.under(policy)), programs, progress, name)
    table = Table("", title=f"{len(programs)} programs on {simulated}")
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
