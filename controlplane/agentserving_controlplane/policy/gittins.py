"""Levels computed from the sizes of finished programs: a Gittins index for each attained service. Pure.

The index of a program that has attained `a` is the best ratio, over horizons `h`, of the expected worth of finishing
before `h` to the expected service spent until then (Gittins 1979). Horizons are limited to level bounds, because
picking the best of many candidates overfits. Finishing is worth one over the square root of the program's size: between
one, which minimises the mean latency, and one over the size, which minimises the latency per token (paper, section 6).
If programs are less likely to finish the more service they have had, the least attained service goes first (PLAS); if
their sizes are alike, the most.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from agentserving.contract.policy import Level, Policy

# A class with fewer finished programs uses the policy's own levels.
MIN_SAMPLES = 30
# Newest finished programs of a class; and classes, of which the least recently used are dropped.
MAX_SAMPLES, MAX_KNOWN_CLASSES = 1000, 64
# Time between two computations of the levels.
RELEVEL_US = 10_000_000
# Level bounds double from 250 ms up to 18 hours of service.
BASE_US, COUNT = 250_000, 20
# Ratio of costs between two ranks. It and the worth of finishing were chosen by experiment (docs/results).
RANK_RATIO = 1.3
# Smaller programs count as this large.
MIN_SIZE_US = 1_000


@dataclass(frozen=True, slots=True)
class Survival:
    """Kaplan-Meier estimate of the share of programs larger than t; live programs are censored at their age."""

    # Sizes of finished programs, ascending; share of larger ones; integral of that share; worth of finishing so far.
    ends: tuple[float, ...]
    lasting: tuple[float, ...]
    areas: tuple[float, ...]
    worths: tuple[float, ...]

    @classmethod
    def of(cls, finished: Iterable[int], live: Iterable[int]) -> Survival:
        """From the sizes of finished programs and the attained service of live ones; microseconds."""
        seen = sorted([*((value, False) for value in finished), *((value, True) for value in live)])
        ends, lasting, areas, worths = [0.0], [1.0], [0.0], [0.0]
        at_risk, share = len(seen), 1.0
        for value, is_live in seen:
            if not is_live:
                areas.append(areas[-1] + share * (value - ends[-1]))
                worths.append(worths[-1] + share / at_risk / math.sqrt(max(value, MIN_SIZE_US)))
                share *= 1 - 1 / at_risk
                ends.append(float(value))
                lasting.append(share)
            at_risk -= 1
        return cls(tuple(ends), tuple(lasting), tuple(areas), tuple(worths))

    def at(self, service: float) -> tuple[float, float]:
        """(integral of the share of larger programs, worth of finishing), both up to a service."""
        index = bisect_right(self.ends, service) - 1
        return self.areas[index] + self.lasting[index] * (service - self.ends[index]), self.worths[index]


def cost(survival: Survival, attained: float, horizons: Sequence[float]) -> float:
    """The index as a cost: the size, in microseconds, of a new program that has the same index. Infinite when no
    program is known to have finished later."""
    area, worth = survival.at(attained)
    best = math.inf
    for horizon in horizons:
        if horizon > attained:
            area_then, worth_then = survival.at(horizon)
            if worth_then > worth:
                best = min(best, (area_then - area) / (worth_then - worth))
    # A new program of size s costs s for a worth of 1 / sqrt(s).
    return math.pow(best, 2 / 3)


def rank_of(cost_us: float) -> int:
    """The rank of a cost: 0 below BASE_US, and one more for each factor of RANK_RATIO."""
    return 0 if cost_us < BASE_US else 1 + int(math.log(cost_us / BASE_US, RANK_RATIO))


def levels(survival: Survival) -> tuple[Level, ...]:
    """A level table with ranks that compare across classes."""
    bounds = [0, *(BASE_US << index for index in range(COUNT - 1))]
    # If every finished size were a horizon, two of a hundred programs that happened to finish just after a bound would
    # move every program of that age ahead of new ones.
    last = survival.ends[-1]
    horizons = [*(bound for bound in bounds if bound < last), last]
    table = []
    for lower, upper in zip(bounds, [*bounds[1:], 0], strict=True):
        cost_us = cost(survival, lower, horizons)
        # Beyond the largest known size, expect as much service again as the program has had.
        rank = rank_of(lower if math.isinf(cost_us) else cost_us)
        table.append(Level(upper, upper - lower if upper else 0, rank))
    return tuple(table)


def with_ranks(table: Sequence[Level]) -> tuple[Level, ...]:
    """A policy's own levels with comparable ranks: expect as much service again as a program has had (PLAS)."""
    lower = [0, *(level.upper_bound_us for level in table[:-1])]
    return tuple(replace(level, rank=rank_of(low)) for level, low in zip(table, lower, strict=True))


@dataclass(slots=True)
class Sizes:
    """Sizes of finished programs, and attained service of live ones, by class (the root program's name)."""

    finished: OrderedDict[str, deque[int]] = field(default_factory=OrderedDict)
    live: dict[str, list[int]] = field(default_factory=dict)

    def end(self, class_name: str, service_us: int) -> None:
        """Adds a program that has finished by itself."""
        known = self.finished.setdefault(class_name, deque(maxlen=MAX_SAMPLES))
        known.append(service_us)
        self.finished.move_to_end(class_name)
        if len(self.finished) > MAX_KNOWN_CLASSES:
            self.finished.popitem(last=False)

    def go_on(self, programs: Iterable[tuple[str, int]]) -> None:
        """Replaces the (class, attained service) of programs that are live, or were cut off before they finished."""
        self.live = {}
        for class_name, service_us in programs:
            self.live.setdefault(class_name, []).append(service_us)

    def relevel(self, policy: Policy) -> Policy:
        """The policy as engines execute it: with levels for each class that has MIN_SAMPLES finished programs."""
        classes = tuple(
            (class_name, levels(Survival.of(finished, self.live.get(class_name, ()))))
            for class_name, finished in sorted(self.finished.items())
            if len(finished) >= MIN_SAMPLES
        )
        return replace(policy, levels=with_ranks(policy.levels), classes=classes)
