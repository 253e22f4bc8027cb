"""Compares two policies on the same programs: the gain, its confidence interval, and the groups that lose. Pure.

Each program is compared with itself. Intervals come from a block bootstrap: programs that arrive together wait
together, so blocks of neighbours are resampled. Resampling single programs would make the intervals too narrow.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentserving_replay.figures import percentile
from agentserving_replay.results import ProgramResult

BLOCKS, RESAMPLES = 25, 400
# Smaller groups are not reported.
LEAST_IN_GROUP = 8
MOST_CLASSES = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """One program under the current policy and under another one."""

    name: str
    base: ProgramResult
    other: ProgramResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A figure under both policies, where smaller is better.

    `gain` is the share by which it shrinks (negative: grows), `low` and `high` bound its 95 % interval.
    """

    what: str
    programs: int
    base: float
    other: float
    gain: float
    low: float
    high: float

    @property
    def is_gain(self) -> bool:
        """The whole interval is a gain."""
        return self.low > 0

    @property
    def is_loss(self) -> bool:
        """The whole interval is a loss."""
        return self.high < 0


def _latency(result: ProgramResult) -> float:
    return result.latency_s


def _token_ms(result: ProgramResult) -> float:
    return 1000 * result.token_latency_s


Statistic = Callable[[Sequence[float]], float]


def _p95(values: Sequence[float]) -> float:
    return percentile(values, 0.95)


def _p99(values: Sequence[float]) -> float:
    return percentile(values, 0.99)


# Goal -> (heading, value of a program, statistic over programs).
FIGURES: dict[str, tuple[str, Callable[[ProgramResult], float], Statistic]] = {
    "latency": ("program latency, mean (s)", _latency, statistics.fmean),
    "latency-p95": ("program latency, p95 (s)", _latency, _p95),
    "latency-p99": ("program latency, p99 (s)", _latency, _p99),
    "token": ("token latency, mean (ms)", _token_ms, statistics.fmean),
    "token-p95": ("token latency, p95 (ms)", _token_ms, _p95),
    "token-p99": ("token latency, p99 (ms)", _token_ms, _p99),
}


def pairs(base: Sequence[ProgramResult], other: Sequence[ProgramResult]) -> list[Pair]:
    """Programs that ended in both runs, ordered by arrival."""
    by_id = {result.program_id: result for result in other}
    found = [Pair(r.name, r, by_id[r.program_id]) for r in base if r.program_id in by_id]
    return sorted(found, key=lambda pair: (pair.base.arrival_s, pair.base.program_id))


def gain(
    what: str,
    compared: Sequence[Pair],
    value: Callable[[ProgramResult], float],
    statistic: Statistic,
    rng: random.Random,
) -> Gain:
    """The gain in one figure. ValueError without programs."""
    if not compared:
        raise ValueError(f"{what}: no program to compare")
    base, other = [value(pair.base) for pair in compared], [value(pair.other) for pair in compared]
    count = len(compared)
    length = max(1, round(count / BLOCKS))
    # Blocks wrap around the end, so that every program is in equally many of them.
    base_round, other_round = base + base[:length], other + other[:length]
    drawn = []
    for _ in range(RESAMPLES):
        begins = [rng.randrange(count) for _ in range(-(-count // length))]
        one = statistic([x for at in begins for x in base_round[at : at + length]])
        drawn.append(_share(one, statistic([x for at in begins for x in other_round[at : at + length]])))
    drawn.sort()
    edge = round(0.025 * RESAMPLES)
    before, after = statistic(base), statistic(other)
    return Gain(
        what=what,
        programs=count,
        base=before,
        other=after,
        gain=_share(before, after),
        low=drawn[edge],
        high=drawn[-1 - edge],
    )


def _share(base: float, other: float) -> float:
    return 1 - other / base if base else 0.0


def gains(compared: Sequence[Pair], rng: random.Random) -> dict[str, Gain]:
    """The gain in every figure, by goal."""
    return {goal: gain(what, compared, value, statistic, rng) for goal, (what, value, statistic) in FIGURES.items()}


def groups(compared: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Groups whose latency is compared separately: tenths by service under the current policy, and classes."""
    by_size = sorted(compared, key=lambda pair: (pair.base.service_s, pair.base.program_id))
    tenth = max(1, len(by_size) // 10)
    found = {
        "smallest tenth": by_size[:tenth],
        "middle": by_size[tenth : len(by_size) - tenth],
        "largest tenth": by_size[len(by_size) - tenth :],
    }
    classes: dict[str, list[Pair]] = {}
    for pair in compared:
        classes.setdefault(pair.name, []).append(pair)
    most = sorted(classes.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_CLASSES]
    found |= {f"class {name or '(no name)'}": members for name, members in most if len(classes) > 1}
    return {
        name: sorted(members, key=lambda pair: (pair.base.arrival_s, pair.base.program_id))
        for name, members in found.items()
        if len(members) >= LEAST_IN_GROUP
    }


def group_gains(compared: Sequence[Pair], rng: random.Random) -> list[Gain]:
    """The gain in mean program latency of each group."""
    return [gain(name, members, _latency, statistics.fmean, rng) for name, members in groups(compared).items()]
