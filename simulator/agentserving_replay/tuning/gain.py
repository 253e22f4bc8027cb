"""What one policy gains over another on the same programs, how sure that is, and for whom it is worse. Pure.

A program is compared with itself. How sure a gain is comes from resampling (bootstrap): programs that arrive together
wait together, so blocks of neighbours are drawn, not single programs, or the interval would be too narrow.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentserving_replay.cluster import ProgramResult
from agentserving_replay.figures import percentile

BLOCKS, RESAMPLES = 25, 400
# Fewer programs tell nothing about a group.
LEAST_IN_GROUP = 8
MOST_CLASSES = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """A program under the policy in force and under another one."""

    name: str
    base: ProgramResult
    other: ProgramResult


@dataclass(frozen=True, slots=True)
class Gain:
    """Of a figure that is better when it is smaller: base, other, and the share that is gained (negative: lost) with
    the bounds of its 95 % interval."""

    what: str
    programs: int
    base: float
    other: float
    gain: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """The interval is on the side of a gain."""
        return self.low > 0

    @property
    def sure_loss(self) -> bool:
        """The interval is on the side of a loss."""
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
    """Programs that ended in both runs, by arrival."""
    by_id = {result.program_id: result for result in other}
    found = [Pair(r.name, r, by_id[r.program_id]) for r in base if r.program_id in by_id]
    return sorted(found, key=lambda pair: (pair.base.arrival_s, pair.base.program_id))


def gain(
    what: str, compared: Sequence[Pair], value: Callable[[ProgramResult], float], over: Statistic, dice: random.Random
) -> Gain:
    """The gain of one figure. ValueError when no program is compared."""
    if not compared:
        raise ValueError(f"{what}: no program to compare")
    base, other = [value(pair.base) for pair in compared], [value(pair.other) for pair in compared]
    count = len(compared)
    length = max(1, round(count / BLOCKS))
    # Blocks go round the end, so that every program is in as many of them.
    base_round, other_round = base + base[:length], other + other[:length]
    drawn = []
    for _ in range(RESAMPLES):
        begins = [dice.randrange(count) for _ in range(-(-count // length))]
        one = over([x for at in begins for x in base_round[at : at + length]])
        drawn.append(_share(one, over([x for at in begins for x in other_round[at : at + length]])))
    drawn.sort()
    edge = round(0.025 * RESAMPLES)
    was, would_be = over(base), over(other)
    return Gain(what, count, was, would_be, _share(was, would_be), drawn[edge], drawn[-1 - edge])


def _share(base: float, other: float) -> float:
    return 1 - other / base if base else 0.0


def gains(compared: Sequence[Pair], dice: random.Random) -> dict[str, Gain]:
    """All figures, by goal."""
    return {goal: gain(what, compared, value, over, dice) for goal, (what, value, over) in FIGURES.items()}


def groups(compared: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Whose latency is looked at for itself: tenths by service received under the policy in force, and classes."""
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


def group_gains(compared: Sequence[Pair], dice: random.Random) -> list[Gain]:
    """Mean program latency of each group."""
    return [gain(name, members, _latency, statistics.fmean, dice) for name, members in groups(compared).items()]
