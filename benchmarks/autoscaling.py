"""A day of coding agents on engines that follow a scaler, in virtual time: what the engines cost, and who waits.

Arrivals are those of one hour of a code completion service (Azure), with its bursts, repeated for a day. Of them, as
many as an office day's curve says begin a recorded coding session; the others are left out. Ours runs production's
signals and decisions; compared with autoscalers on queue length and on calls, and fixed numbers of engines.

    python -m benchmarks.autoscaling [--hours 24] [--peak 20] [--seeds 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from agentserving.contract.ids import ProgramId
from agentserving.contract.policy import preset
from agentserving_operator.scaling.decision import Bounds
from agentserving_replay.cluster import ClusterSpec
from agentserving_replay.elastic import ElasticCluster, FixedScaler, ProgramScaler, QueueScaler, Scaler
from agentserving_replay.figures import percentile
from agentserving_replay.traces.trace import Program
from agentserving_simulator.cost_model import cost_model
from agentserving_simulator.virtual.limits import EngineLimits

from benchmarks.paper.bursts import gaps_ms
from benchmarks.paper.sessions import sessions
from benchmarks.records import ROOT, commit_of

HOUR_S = 3600.0
# An engine pod whose image is on the node: vLLM's start with an 8B model.
START_S = 90.0
MOST = 12
# Sessions in the busiest hour.
PEAK_PER_HOUR = 20


def curve(hour: float) -> float:
    """Share of the busiest hour's sessions at an hour of the day: nights are quiet, noon dips."""
    day = max(0.0, math.sin(math.pi * (hour - 6) / 14)) if 6 <= hour <= 20 else 0.0
    noon = 0.2 * math.exp(-((hour - 12.5) ** 2))
    return max(0.04, day - noon)


def programs(seed: int, first_hour: float, hours: float, peak: float = PEAK_PER_HOUR) -> list[Program]:
    """The sessions of that part of a day."""
    rng = random.Random(f"autoscaling-{seed}")
    gaps, known = gaps_ms(), sessions()
    share = peak / len(gaps) * (sum(gaps) / 1000 / HOUR_S)
    at, now_s, found, order = rng.randrange(len(gaps)), 0.0, list[Program](), list[int]()
    while now_s < hours * HOUR_S:
        now_s += gaps[at] / 1000
        at = (at + 1) % len(gaps)
        if rng.random() < share * curve((first_hour + now_s / HOUR_S) % 24):
            order = order or rng.sample(range(len(known)), len(known))
            found.append(Program(ProgramId(f"session-{len(found)}"), "coding", now_s, known[order.pop()]))
    return found


BOUNDS = Bounds(least=1, most=MOST, target=0.8, scale_in_s=300.0, idle_s=600.0)
ZERO = Bounds(least=0, most=MOST, target=0.8, scale_in_s=300.0, idle_s=600.0)
SCALERS: dict[str, Callable[[], Scaler]] = {
    "programs": lambda: ProgramScaler(BOUNDS, 1),
    "HPA, 1 waiting call": lambda: QueueScaler(BOUNDS, 1, only_waiting=True),
    "HPA, 4 calls": lambda: QueueScaler(BOUNDS, 4, only_waiting=False),
    "12 engines": lambda: FixedScaler(12),
    "4 engines": lambda: FixedScaler(4),
    "HPA, 5 waiting calls": lambda: QueueScaler(BOUNDS, 5, only_waiting=True),
    "HPA, 2 calls": lambda: QueueScaler(BOUNDS, 2, only_waiting=False),
    "programs, to zero": lambda: ProgramScaler(ZERO, 1),
    "8 engines": lambda: FixedScaler(8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run. Times in seconds, over programs. `served`: without the time in which only tools worked."""

    scaler: str
    seed: int
    programs: int
    engine_hours: float
    engines_at_most: int
    changes: int
    served_mean: float
    served_p50: float
    served_p95: float
    served_p99: float
    latency_mean: float
    wait_mean: float
    wait_p95: float
    prefix_hits: float
    took_s: float


def run(scaler: str, seed: int, first_hour: float, hours: float, peak: float = PEAK_PER_HOUR) -> Outcome:
    """One run to the end of its programs."""
    began = time.monotonic()
    made = SCALERS[scaler]()
    count = int(scaler.split()[0]) if isinstance(made, FixedScaler) else 1
    spec = ClusterSpec(
        policy=preset("program-plas"), cost=cost_model("a100-80gb", "llama-3.1-8b"), limits=EngineLimits(48),
        engines=count,
    )  # fmt: skip
    cluster = ElasticCluster(spec, made, START_S)
    cluster.add(programs(seed, first_hour, hours, peak))
    # Engines are paid for during the day; what is left of it is served as well.
    cluster.run(hours * HOUR_S)
    bill = cluster.close_bill()
    engine_s, counts = bill.engine_s, list(bill.counts)
    results = cluster.run()
    served, waits = [each.latency_s - each.tool_s for each in results], [each.wait_s for each in results]
    return Outcome(
        scaler=scaler, seed=seed, programs=len(results), engine_hours=engine_s / HOUR_S,
        engines_at_most=max(count for _, count in counts), changes=len(counts) - 1,
        served_mean=statistics.fmean(served), served_p50=percentile(served, 0.5),
        served_p95=percentile(served, 0.95), served_p99=percentile(served, 0.99),
        latency_mean=statistics.fmean(each.latency_s for each in results),
        wait_mean=statistics.fmean(waits), wait_p95=percentile(waits, 0.95),
        prefix_hits=sum(each.cached_tokens for each in results) / sum(each.prompt_tokens for each in results),
        took_s=time.monotonic() - began,
    )  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: the mean over seeds for each scaler."""
    lines = [
        "| scaler | engine hours | most engines | changes | served mean, p95, p99 (s) | wait mean, p95 (s) | hits |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(each.scaler for each in outcomes):
        of = [each for each in outcomes if each.scaler == name]

        def mean(field: str, of: Sequence[Outcome] = of) -> float:
            return statistics.fmean(getattr(each, field) for each in of)

        cells = [
            f"{mean('engine_hours'):.1f}", f"{mean('engines_at_most'):.0f}", f"{mean('changes'):.0f}",
            f"{mean('served_mean'):.0f}, {mean('served_p95'):.0f}, {mean('served_p99'):.0f}",
            f"{mean('wait_mean'):.0f}, {mean('wait_p95'):.0f}", f"{mean('prefix_hits'):.2f}",
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all of them, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--first-hour", type=float, default=0.0)
    parser.add_argument("--peak", type=float, default=PEAK_PER_HOUR, help="sessions in the busiest hour")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scalers", nargs="*", default=list(SCALERS), choices=list(SCALERS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    # Of the code that is loaded now, whatever is committed while this runs.
    commit, outcomes = commit_of(ROOT), []
    for seed in range(given.seeds):
        for scaler in given.scalers:
            outcomes.append(run(scaler, seed, given.first_hour, given.hours, given.peak))
            print(outcomes[-1], file=sys.stderr, flush=True)
            if given.json is not None:
                found = {
                    "commit": commit,
                    "outcomes": [asdict(each) for each in outcomes],
                }
                given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
