"""``agentserving tune``: which policy would have served the programs of a trace better, how sure that is, and who pays.

The policy is chosen on the first half of the programs and judged on the second: what merely fitted the first half by
chance shows no gain there. The second half is run behind the first one, as it came.
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

from agentserving_replay.cluster import ProgramResult, VirtualCluster
from agentserving_replay.cluster_options import Simulated, cluster_options
from agentserving_replay.traces.file import Recorded, read_recording
from agentserving_replay.traces.trace import Program
from agentserving_replay.tuning.gain import FIGURES, Pair, gains, group_gains, pairs
from agentserving_replay.tuning.report import Judged, print_report
from agentserving_replay.tuning.search import Found, OutOfTimeError, search

# Fewer programs tell a gain from chance in no case.
LEAST_PROGRAMS = 40
# Virtual time between two looks at the clock, seconds.
SLICE_S = 60.0

Tick = Callable[[float], None]


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--against", default="", help="A preset or a JSON file; by default the recorded policy, else atlas.")
@click.option("--goal", type=click.Choice(list(FIGURES)), default="latency", show_default=True, help="What to lower.")
@click.option("--budget", type=click.FloatRange(1), default=600.0, show_default=True, help="Seconds for the search.")
@click.option("--most", type=click.IntRange(2, 10_000), default=80, show_default=True, help="Policies to try.")
@click.option("--decision-interval", type=click.IntRange(1, 1024), default=8, show_default=True, help="Steps, for all.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where a policy that pays is written.")
@cluster_options
def tune(
    trace: Path, against: str, goal: str, budget: float, most: int, decision_interval: int, out: Path | None,
    **chosen: Any,
) -> None:  # fmt: skip
    """Find a policy that would have served the programs of a TRACE better; say how sure that is, and for whom not.

    Tries the presets, then levels, quanta, accounting, order, beta and preemptions of the best one, in virtual time. It
    is chosen on the first half of the programs; gains, with 95 % intervals, are those on the second half. The same
    trace and options give the same answer, unless --budget ends the search.
    """
    try:
        with trace.open("rb") as lines:
            recorded, programs = read_recording(lines)
        if len(programs) < LEAST_PROGRAMS:
            raise ValueError(f"{len(programs)} programs are too few to tell a gain from chance: at least 40")
        simulated = Simulated.of(recorded, **chosen)
        policy = policy_against(against, recorded)
        judged = _tuned(simulated, programs, policy, goal, budget, most, decision_interval)
    except (ValueError, OSError) as error:
        raise click.ClickException(f"{trace}: {error}") from error
    print_report(Console(), judged, f"{len(programs)} programs of {trace.name} on {simulated}", out)


def policy_against(named: str, recorded: Recorded | None) -> Policy:
    """A preset, a policy in a JSON file, that of the recording, or what clusters start with. ClickException."""
    if not named:
        return recorded.policy if recorded else DEFAULT
    if named in PRESETS:
        return PRESETS[named]
    try:
        return policy_from(json_format.ParseDict(json.loads(Path(named).read_text()), types_pb2.Policy()))
    except OSError:
        raise click.ClickException(
            f"--against {named}: no such preset ({', '.join(PRESETS)}), and no file that can be read"
        ) from None
    except (json_format.ParseError, InvalidPolicyError, ValueError, AttributeError) as error:
        raise click.ClickException(f"--against {named}: {' '.join(str(error).split())}") from error


def _tuned(
    simulated: Simulated,
    programs: Sequence[Program],
    policy: Policy,
    goal: str,
    budget_s: float,
    most: int,
    interval: int,
) -> Judged:
    against = replace(policy, decision_interval_steps=interval)
    first = programs[: len(programs) // 2]
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task("searching", total=most)
        trials = Trials(
            simulated, first, goal, time.monotonic() + budget_s, lambda done: progress.update(bar, completed=done)
        )
        found = search(against, [each for each in PRESETS.values() if each.source is Source.FIXED], trials.cost, most)
        progress.update(bar, completed=most, description="judging")
        runs = [finished(simulated, programs, each) for each in _to_judge(found, against)]
    late = {program.program_id for program in programs[len(first) :]}
    compared = [pair for pair in pairs(runs[0], runs[-1]) if pair.base.program_id in late]
    return judge(found, policy, goal, compared)


def _to_judge(found: Found, against: Policy) -> list[Policy]:
    return [against] if found.best.policy == against else [against, found.best.policy]


def judge(found: Found, policy: Policy, goal: str, compared: Sequence[Pair]) -> Judged:
    """What is to be told: the proposal has the decision interval of the policy in force, not that of the simulation."""
    proposal = replace(found.best.policy, decision_interval_steps=policy.decision_interval_steps)
    changed = len(found.tried) > 0 and found.best is not found.tried[0]
    return Judged(
        policy,
        proposal if changed else None,
        goal,
        found,
        gains(compared, random.Random(0)),
        group_gains(compared, random.Random(0)),
    )


@dataclass(slots=True)
class Trials:
    """What policies cost on some programs."""

    simulated: Simulated
    programs: Sequence[Program]
    goal: str
    deadline: float
    tick: Tick
    done: int = 0

    def cost(self, policy: Policy, limit: float) -> float:
        """The goal's figure, run to the end; infinite when it is certain to be above the limit. OutOfTimeError."""
        _, value, over = FIGURES[self.goal]
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
        return over([value(result) for result in cluster.results])

    def _next(self) -> None:
        self.done += 1
        self.tick(self.done)


def finished(simulated: Simulated, programs: Sequence[Program], policy: Policy) -> list[ProgramResult]:
    """All programs under a policy."""
    cluster = VirtualCluster(simulated.under(policy))
    cluster.add(programs)
    return cluster.run()
