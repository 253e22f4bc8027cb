"""The closed loop on the command line: options of `agentserving replay`, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click
from agentserving.contract.policy import Policy
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from agentserving_replay.closed_loop import Loop, LoopFigures, agents_per_engine, run_loop
from agentserving_replay.cluster_options import SimulatedCluster
from agentserving_replay.traces.trace import Program

SLO_TTFT_S, DURATION_S = 30.0, 3600.0
# Share of the duration that is not counted: a loop begins with empty caches and programs that are all young.
WARMUP_SHARE = 0.25

_ABOVE_ZERO = click.FloatRange(min=0, max=1e6, min_open=True)
_OPTIONS = (
    click.option("--concurrency", type=click.IntRange(1, 100_000), multiple=True,
                 help="Closed loop: number of programs open in the cluster. May be given again."),
    click.option("--slo-ttft", type=_ABOVE_ZERO,
                 help=f"Closed loop: seconds in which a call should get its first token. Default: {SLO_TTFT_S:g}."),
    click.option("--cap-think-s", type=click.FloatRange(0, 1e6),
                 help="Closed loop: shorten longer times between two calls of a program. Default: as recorded."),
    click.option("--duration", type=click.FloatRange(60, 1e7),
                 help=f"Closed loop: virtual seconds, the first quarter of which is not counted. Default:"
                 f" {DURATION_S:g}; sessions that last hours want more."),
)  # fmt: skip
_COLUMNS = ("policy", "open", "tokens/s", "goodput", "p50 s", "p90 s", "p99 s", "GPU", "host", "ended")


def loop_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command; `loops_of` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def loops_of(
    concurrency: Sequence[int], *, slo_ttft_s: float | None, cap_think_s: float | None, duration_s: float | None
) -> list[Loop]:
    """One loop for each concurrency, smallest first. UsageError for options that mean nothing without one."""
    given = {"--slo-ttft": slo_ttft_s, "--cap-think-s": cap_think_s, "--duration": duration_s}
    useless = [name for name, value in given.items() if value is not None]
    if useless and not concurrency:
        raise click.UsageError(f"{useless[0]} is for a closed loop: give --concurrency, too")
    total_s = duration_s or DURATION_S
    return [
        Loop(
            concurrency=each,
            slo_ttft_s=slo_ttft_s or SLO_TTFT_S,
            duration_s=total_s,
            warmup_s=total_s * WARMUP_SHARE,
            cap_think_s=cap_think_s,
        )
        for each in sorted(set(concurrency))
    ]


def print_loops(
    console: Console,
    simulated: SimulatedCluster,
    policies: Mapping[str, Policy],
    programs: Sequence[Program],
    loops: Sequence[Loop],
) -> None:
    """Runs every loop under every policy and prints the figures. ValueError (closed_loop.py)."""
    slo_s = loops[0].slo_ttft_s
    title = f"{len(programs)} programs in a closed loop on {simulated}, {loops[0].duration_s:g} s"
    table = Table(*_COLUMNS, title=title, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    verdicts = []
    with Progress(console=console, transient=True) as progress:
        for name, policy in policies.items():
            runs = []
            for loop in loops:
                bar = progress.add_task(f"{name}, {loop.concurrency} open", total=loop.duration_s)
                tick = partial(_progressed, progress, bar)
                runs.append(run_loop(simulated.under(policy), programs, loop, tick))
                table.add_row(name, *_cells(runs[-1]))
            verdicts.append(_verdict(name, runs, slo_s))
    console.print(table)
    console.print(
        f"goodput: output tokens a second of calls whose first token came within {slo_s:g} s; p50, p90, p99: time to"
        " first token of calls, including those that still wait; GPU, host: share of prompt tokens cached there; ended:"
        " programs.\n" + "\n".join(verdicts),
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def _progressed(progress: Progress, bar: TaskID, now_s: float) -> None:
    progress.update(bar, completed=now_s)


def _cells(run: LoopFigures) -> tuple[str, ...]:
    return (
        str(run.concurrency), f"{run.tokens_per_s:.1f}", f"{run.goodput:.1f}", f"{run.ttft_p50_s:.2f}",
        f"{run.ttft_p90_s:.2f}", f"{run.ttft_p99_s:.2f}", f"{run.gpu_hits:.1%}", f"{run.host_hits:.1%}",
        str(run.programs),
    )  # fmt: skip


def _verdict(name: str, runs: Sequence[LoopFigures], slo_s: float) -> str:
    most = agents_per_engine(runs)
    if not most:
        return f"{name}: no concurrency tried has p90 TTFT <= {slo_s:g} s"
    more = "" if not runs[-1].in_time else ", or more: the largest one tried meets the SLO"
    return f"{name}: {most:g} agents per engine at p90 TTFT <= {slo_s:g} s{more}"
