"""Levels from what finished programs took: a Gittins index for each attained service.

The index of a program that has attained `a` is the best ratio, over horizons `h`, of what is gained by ends before `h`
to the service spent on it meanwhile (Gittins 1979); horizons are the ends of levels. An end is worth one over the
square root of the program's size: between what makes the mean latency low (one) and what makes the time a token low
(one over the size; paper, section 6). For programs that end the less likely the more they have had, the least attained
service goes first (PLAS); for programs of like sizes, the most. Pure.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from agentserving.contract.policy import Level, Policy

# Fewer finished programs of a class say too little: it goes by the policy's own levels.
MIN_SAMPLES = 30
# Remembered of a class; older ones say less of what comes. Classes beyond the most are the longest unused.
MAX_SAMPLES, MAX_KNOWN_CLASSES = 1000, 64
# Levels are made anew so often, when programs have ended meanwhile.
RELEVEL_US = 10_000_000
# Levels double from a quarter of a second on, to 18 hours of service.
BASE_US, COUNT = 250_000, 20
# A level's rank grows by one as its cost grows by so much. It and the worth of an end were chosen in docs/results.
RANK_RATIO = 1.3
# A program's size is not taken for less than a millisecond.
MIN_SIZE_US = 1_000


@dataclass(frozen=True, slots=True)
class Survival:
    """Kaplan-Meier estimate of programs that last longer than t, from finished ones and from ages of live ones."""

    # Services at which programs ended, ascending; share that lasts longer; integral of that share; worth of the ends.
    ends: tuple[float, ...]
    lasting: tuple[float, ...]
    areas: tuple[float, ...]
    worths: tuple[float, ...]

    @classmethod
    def of(cls, finished: Iterable[int], live: Iterable[int]) -> Survival:
        """From services of finished programs and of those that go on; microseconds."""
        seen = sorted([*((value, False) for value in finished), *((value, True) for value in live)])
        ends, lasting, areas, worths = [0.0], [1.0], [0.0], [0.0]
        at_risk, share = len(seen), 1.0
        for value, goes_on in seen:
            if not goes_on:
                areas.append(areas[-1] + share * (value - ends[-1]))
                worths.append(worths[-1] + share / at_risk / math.sqrt(max(value, MIN_SIZE_US)))
                share *= 1 - 1 / at_risk
                ends.append(float(value))
                lasting.append(share)
            at_risk -= 1
        return cls(tuple(ends), tuple(lasting), tuple(areas), tuple(worths))

    def at(self, service: float) -> tuple[float, float]:
        """(integral up to here of the share that lasts, worth of the ends up to here)."""
        index = bisect_right(self.ends, service) - 1
        return self.areas[index] + self.lasting[index] * (service - self.ends[index]), self.worths[index]


def cost(survival: Survival, attained: float, horizons: Sequence[float]) -> float:
    """The size, microseconds, of a program that has just begun and has this index; infinite when no end is in sight."""
    area, worth = survival.at(attained)
    best = math.inf
    for horizon in horizons:
        if horizon > attained:
            area_then, worth_then = survival.at(horizon)
            if worth_then > worth:
                best = min(best, (area_then - area) / (worth_then - worth))
    # Of size s, begun now: s of service for an end that is worth 1 / sqrt(s).
    return math.pow(best, 2 / 3)


def rank_of(cost_us: float) -> int:
    """The rank of a level: 0 below a quarter of a second, and one more for each RANK_RATIO."""
    return 0 if cost_us < BASE_US else 1 + int(math.log(cost_us / BASE_US, RANK_RATIO))


def levels(survival: Survival) -> tuple[Level, ...]:
    """A level table in ranks that compare across classes."""
    bounds = [0, *(BASE_US << index for index in range(COUNT - 1))]
    # A level is gone through as a whole. And of many horizons the best is the luckiest: were each end one, and did two
    # of a hundred programs happen to end just behind a bound, all who have had so much would go before newcomers.
    last = survival.ends[-1]
    horizons = [*(bound for bound in bounds if bound < last), last]
    made = []
    for lower, upper in zip(bounds, [*bounds[1:], 0], strict=True):
        told = cost(survival, lower, horizons)
        # None has ended that had so much. What is known of sizes without bound: about as much again.
        rank = rank_of(lower if math.isinf(told) else told)
        made.append(Level(upper, upper - lower if upper else 0, rank))
    return tuple(made)


def with_ranks(table: Sequence[Level]) -> tuple[Level, ...]:
    """A policy's own levels in the same ranks: a program costs about what it has had already (PLAS)."""
    lower = [0, *(level.upper_bound_us for level in table[:-1])]
    return tuple(replace(level, rank=rank_of(low)) for level, low in zip(table, lower, strict=True))


@dataclass(slots=True)
class Sizes:
    """Services of programs by class: of those that have finished, and so far of those that go on."""

    finished: OrderedDict[str, deque[int]] = field(default_factory=OrderedDict)
    live: dict[str, list[int]] = field(default_factory=dict)

    def end(self, application: str, service_us: int) -> None:
        """A program of a class has ended by itself."""
        known = self.finished.setdefault(application, deque(maxlen=MAX_SAMPLES))
        known.append(service_us)
        self.finished.move_to_end(application)
        if len(self.finished) > MAX_KNOWN_CLASSES:
            self.finished.popitem(last=False)

    def go_on(self, programs: Iterable[tuple[str, int]]) -> None:
        """The (class, service so far) of all that are live, or ended in another way than by themselves."""
        self.live = {}
        for application, service_us in programs:
            self.live.setdefault(application, []).append(service_us)

    def relevel(self, policy: Policy) -> Policy:
        """The policy as engines execute it: levels for each class of which enough is known."""
        classes = tuple(
            (application, levels(Survival.of(finished, self.live.get(application, ()))))
            for application, finished in sorted(self.finished.items())
            if len(finished) >= MIN_SAMPLES
        )
        return replace(policy, levels=with_ranks(policy.levels), classes=classes)
