"""``agentserving tune``: finds a policy that would have served the programs of a trace better, and who loses by it.

The policy is chosen on the first half of the programs and judged on the second, where a policy that merely overfits the
first half shows no gain. The second half runs after the first one, as it arrived.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from agentserving.contract.policy import DEFAULT, PRESETS, InvalidPolicyError, Policy, Source
from agentserving.contract.policy_message import policy_from
from agentserving.v1 import types_pb2
from google.protobuf import json_format
from rich.console import Console
from rich.progress import Progress

from agentserving_replay.cluster import VirtualCluster
from agentserving_replay.cluster_options import SimulatedCluster, cluster_options
from agentserving_replay.results import ProgramResult
from agentserving_replay.traces.file import RecordedCluster, read_trace
from agentserving_replay.traces.trace import Program
from agentserving_replay.tuning.comparison import FIGURES, Pair, gains, group_gains, pairs
from agentserving_replay.tuning.report import Judgement, print_report
from agentserving_replay.tuning.search import Found, OutOfTimeError, search

# With fewer programs no gain is distinguishable from noise.
LEAST_PROGRAMS = 40
# Virtual seconds between two checks of the budget.
SLICE_S = 60.0

# Called with the number of policies tried so far.
Tick = Callable[[float], None]


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--against", default="", help=f"A preset or a JSON file. Default: the recorded policy, or {DEFAULT.name}."
)
@click.option("--goal", type=click.Choice(list(FIGURES)), default="latency", show_default=True, help="Figure to lower.")
@click.option("--budget", type=click.FloatRange(1), default=600.0, show_default=True, help="Seconds for the search.")
@click.option(
    "--most", type=click.IntRange(2, 10_000), default=80, show_default=True, help="Number of policies to try."
)
@click.option(
    "--decision-interval",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Engine steps between decisions.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File for a policy that pays.")
@cluster_options
def tune(
    trace: Path, against: str, goal: str, budget: float, most: int, decision_interval: int, out: Path | None,
    **chosen: Any,
) -> None:  # fmt: skip
    """Find a policy that would have served the programs of a TRACE better, and say how certain that is and who loses.

    Tries the presets, then variations of the best one (levels, quanta, accounting, order, beta, preemptions, retention)
    in virtual time. The policy is chosen on the first half of the programs; gains, with 95 % intervals, are those on
    the second half. The same trace and options give the same result, unless --budget ends the search.
    """
    try:
        with trace.open("rb") as lines:
            recorded, programs = read_trace(lines)
        if len(programs) < LEAST_PROGRAMS:
            raise ValueError(
                f"{len(programs)} programs are too few to tell a gain from noise: at least {LEAST_PROGRAMS}"
            )
        simulated = SimulatedCluster.of(recorded, **chosen)
        policy = policy_against(against, recorded)
        judged = _tuned(simulated, programs, policy, goal, budget, most, decision_interval)
    except (ValueError, OSError) as error:
        raise click.ClickException(f"{trace}: {error}") from error
    print_report(Console(), judged, f"{len(programs)} programs of {trace.name} on {simulated}", out)


def policy_against(named: str, recorded: RecordedCluster | None) -> Policy:
    """A preset, a policy in a JSON file, the recording's policy, or the default. ClickException for anything else."""
    if not named:
        return recorded.policy if recorded else DEFAULT
    if named in PRESETS:
        return PRESETS[named]
    try:
        return policy_from(json_format.ParseDict(json.loads(Path(named).read_text()), types_pb2.Policy()))
    except OSError:
        raise click.ClickException(
            f"--against {named}: neither a preset ({', '.join(PRESETS)}) nor a readable file"
        ) from None
    except (json_format.ParseError, InvalidPolicyError, ValueError, AttributeError) as error:
        raise click.ClickException(f"--against {named}: {' '.join(str(error).split())}") from error


def _tuned(
    simulated: SimulatedCluster,
    programs: Sequence[Program],
    policy: Policy,
    goal: str,
    budget_s: float,
    most: int,
    interval: int,
) -> Judgement:
    against = replace(policy, decision_interval_steps=interval)
    first = programs[: len(programs) // 2]
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task("searching", total=most)
        trials = Trials(
            simulated=simulated,
            programs=first,
            goal=goal,
            deadline=time.monotonic() + budget_s,
            tick=lambda done: progress.update(bar, completed=done),
        )
        found = search(against, [each for each in PRESETS.values() if each.source is Source.FIXED], trials.cost, most)
        progress.update(bar, completed=most, description="judging")
        runs = [run_all(simulated, programs, each) for each in _to_judge(found, against)]
    late = {program.program_id for program in programs[len(first) :]}
    compared = [pair for pair in pairs(runs[0], runs[-1]) if pair.base.program_id in late]
    return judge(found, policy, goal, compared)


def _to_judge(found: Found, against: Policy) -> list[Policy]:
    return [against] if found.best.policy == against else [against, found.best.policy]


def judge(found: Found, policy: Policy, goal: str, compared: Sequence[Pair]) -> Judgement:
    """Compares the best policy with the current one.

    The proposal has the decision interval of the policy in force, not that of the simulation.
    """
    proposal = replace(found.best.policy, decision_interval_steps=policy.decision_interval_steps)
    changed = len(found.tried) > 0 and found.best is not found.tried[0]
    return Judgement(
        against=policy,
        proposal=proposal if changed else None,
        goal=goal,
        found=found,
        figures=gains(compared, random.Random(0)),
        groups=group_gains(compared, random.Random(0)),
    )


@dataclass(slots=True, kw_only=True)
class Trials:
    """The cost function of the search: runs policies on some programs until the deadline (monotonic seconds)."""

    simulated: SimulatedCluster
    programs: Sequence[Program]
    goal: str
    deadline: float
    tick: Tick
    done: int = 0

    def cost(self, policy: Policy, limit: float) -> float:
        """The goal's figure after a whole run; infinite once it is certain to exceed the limit. OutOfTimeError."""
        _, value, statistic = FIGURES[self.goal]
        cluster = VirtualCluster(self.simulated.under(policy))
        cluster.add(self.programs)
        seen, total = 0, 0.0
        most = limit * len(self.programs) if self.goal == "latency" else math.inf
        while cluster.next_s < math.inf:
            cluster.run(cluster.next_s + SLICE_S)
            if self.done and time.monotonic() > self.deadline:
                raise OutOfTimeError
            total += sum(result.latency_s for result in cluster.results[seen:])
            seen = len(cluster.results)
            if total + cluster.age_s > most:
                self._next()
                return math.inf
        self._next()
        return statistic([value(result) for result in cluster.results])

    def _next(self) -> None:
        self.done += 1
        self.tick(self.done)


def run_all(simulated: SimulatedCluster, programs: Sequence[Program], policy: Policy) -> list[ProgramResult]:
    """Runs all programs to their ends under one policy."""
    cluster = VirtualCluster(simulated.under(policy))
    cluster.add(programs)
    return cluster.run()
