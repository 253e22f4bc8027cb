"""``agentserving replay``: runs programs under several policies in virtual time and compares them."""

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

from agentserving_replay.closed_loop_command import loop_options, loops_of, print_loops
from agentserving_replay.cluster import VirtualCluster
from agentserving_replay.cluster_options import SimulatedCluster, cluster_options
from agentserving_replay.figures import Figures, figures
from agentserving_replay.traces.file import RecordedCluster, read_trace
from agentserving_replay.traces.trace import Program
from agentserving_replay.workloads import WORKLOADS, generate

# Figure, heading, format.
_ROWS = (
    ("token_ms", "token latency, mean (ms)", "{:.1f}"),
    ("token_p95_ms", "  p95", "{:.1f}"),
    ("token_p99_ms", "  p99", "{:.1f}"),
    ("latency_s", "program latency, mean (s)", "{:.2f}"),
    ("latency_p95_s", "  p95", "{:.2f}"),
    ("latency_p99_s", "  p99", "{:.2f}"),
    ("large_latency_p99_s", "  p99 of the largest tenth", "{:.2f}"),
    ("wait_share", "  share waiting", "{:.1%}"),
    ("prefix_hits", "cached prompt tokens", "{:.1%}"),
    ("preemptions", "preemptions", "{:d}"),
    ("makespan_s", "makespan (s)", "{:.0f}"),
)

# Stands for the policy that a recording names.
RECORDED = "recorded"


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option(
    "--workload",
    type=click.Choice(list(WORKLOADS)),
    help="Generate programs of this workload instead of reading a file.",
)
@click.option(
    "--rate", type=click.FloatRange(0.001, 1e6), default=1.0, show_default=True, help="Generated programs per second."
)
@click.option(
    "--programs",
    type=click.IntRange(1, 1_000_000),
    default=500,
    show_default=True,
    help="Number of generated programs.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--policy", "policies", type=click.Choice([*PRESETS, RECORDED]), multiple=True,
    help="May be given again; `recorded` is the policy that a recording names.",
)  # fmt: skip
@click.option(
    "--decision-interval",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Engine steps between decisions.",
)
@loop_options
@cluster_options
def replay(trace: Path | None, workload: str | None, rate: float, programs: int, seed: int, **chosen: object) -> None:
    """Run the programs of a TRACE, or generated ones, in virtual time under one or more policies.

    The scheduler, the load balancer and the process table are the code of a real cluster; only the GPU is a cost model.
    All policies run the same programs with the same arrivals, so the columns differ by policy alone.

    With --concurrency N, arrival times are ignored: N programs are open, and the next one starts when one ends, in the
    order of the trace and again from its beginning. Give several N for the largest one that meets the SLO.
    """
    if (trace is None) == (workload is None):
        raise click.UsageError("give either a trace file or --workload")
    recorded = None
    try:
        if trace is not None:
            with trace.open("rb") as lines:
                recorded, replayed = read_trace(lines)
        else:
            replayed = generate(str(workload), seed, rate, programs)
        _run(replayed, recorded, **chosen)  # type: ignore[arg-type]
    except ValueError as error:
        raise click.ClickException(f"{trace}: {error}" if trace else str(error)) from error


def policy_named(name: str, recorded: RecordedCluster | None) -> Policy:
    """A preset, or the policy of the recording. UsageError when the trace is no recording."""
    if name != RECORDED:
        return PRESETS[name]
    if recorded is None:
        raise click.UsageError("the trace does not name the policy it was recorded under: name a preset")
    return recorded.policy


def _run(
    programs: list[Program],
    recorded: RecordedCluster | None,
    *,
    policies: tuple[str, ...],
    decision_interval: int,
    concurrency: tuple[int, ...],
    slo_ttft: float | None,
    cap_think_s: float | None,
    duration: float | None,
    **chosen: Any,
) -> None:
    loops = loops_of(concurrency, slo_ttft_s=slo_ttft, cap_think_s=cap_think_s, duration_s=duration)
    simulated = SimulatedCluster.of(recorded, **chosen)
    console = Console()
    names = policies or ("fcfs", DEFAULT.name)
    values = [replace(policy_named(name, recorded), decision_interval_steps=decision_interval) for name in names]
    if loops:
        print_loops(console, simulated, dict(zip(names, values, strict=True)), programs, loops)
        return
    results: dict[str, Figures] = {}
    with Progress(console=console, transient=True) as progress:
        for name, policy in zip(names, values, strict=True):
            results[name] = _run_with_progress(VirtualCluster(simulated.under(policy)), programs, progress, name)
    table = Table("", title=f"{len(programs)} programs on {simulated}")
    for name in names:
        table.add_column(name, justify="right")
    for key, heading, form in _ROWS:
        table.add_row(heading, *(form.format(getattr(results[name], key)) for name in names))
    console.print(table)


def _run_with_progress(cluster: VirtualCluster, programs: list[Program], progress: Progress, name: str) -> Figures:
    """Runs the cluster to the end, a virtual minute at a time."""
    bar = progress.add_task(name, total=len(programs))
    cluster.add(programs)
    while cluster.next_s < math.inf:
        cluster.run(cluster.next_s + 60)
        progress.update(bar, completed=len(cluster.results))
    return figures(cluster, cluster.results)
