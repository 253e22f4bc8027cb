"""The search for a better policy: the presets first, then coordinate descent from the best one. Pure.

Level tables are geometric (agentserving.contract.policy.geometric_levels): a count, the first bound, a ratio, and
quanta as shares of the levels' widths, so there are four knobs instead of one per level. The search is deterministic
and bounded by a number of policies. It changes the policy only for a gain of more than MARGIN, so that of two equally
good policies the one closer to the current policy wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentserving.contract.policy import Accounting, Level, Order, Policy, Source, to_dict

# Smallest relative gain worth a change: smaller ones are noise.
MARGIN = 0.005

COUNTS, RATIOS, QUANTA_PERCENT = (2, 3, 4, 6, 8, 10), (2, 3, 4, 8), (50, 100, 200)
BASES_US = (15_000, 60_000, 250_000, 1_000_000, 4_000_000, 16_000_000)
BETAS_MILLI, PREEMPTIONS = (0, 5_000, 20_000, 100_000), (0, 16, 64)
RETENTIONS_MILLI = (0, 1_000, 3_000)
# A day: the largest bound that an AgentServingCluster accepts.
MAX_BOUND_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Geometry:
    """A level table in four numbers."""

    count: int
    base_us: int
    ratio: int
    quanta_percent: int = 100

    def levels(self) -> tuple[Level, ...]:
        """The levels, with bounds and quanta in whole milliseconds as an AgentServingCluster requires."""
        bounds = [self.base_us * self.ratio**index for index in range(self.count - 1)]
        lower = [0, *bounds]
        widths = (high - low for low, high in zip(lower, bounds, strict=False))
        quanta = (max(1, width * self.quanta_percent // 100_000) * 1000 for width in widths)
        return (*(Level(bound, quantum) for bound, quantum in zip(bounds, quanta, strict=True)), Level())

    @property
    def valid(self) -> bool:
        """True when the last bound is at most MAX_BOUND_US."""
        return bool(self.base_us * self.ratio ** max(0, self.count - 2) <= MAX_BOUND_US)


def geometry(policy: Policy) -> Geometry | None:
    """The geometry of a policy's levels; None for a single level or levels that are not geometric."""
    bounds = [level.upper_bound_us for level in policy.levels[:-1]]
    if not bounds:
        return None
    ratio = bounds[1] // bounds[0] if len(bounds) > 1 else 4
    percent = round(100 * policy.levels[0].quantum_us / bounds[0])
    found = Geometry(len(bounds) + 1, bounds[0], ratio, percent)
    return found if ratio > 1 and found.levels() == policy.levels else None


def key(policy: Policy) -> str:
    """A key that is equal for policies with the same behaviour."""
    values: dict[str, Any] = {**to_dict(policy), "name": ""}
    if len(policy.levels) == 1 and policy.order is not Order.ATTAINED_SERVICE:
        values["accounting"] = values["beta_milli"] = None
    return repr(sorted(values.items()))


def _levels(policy: Policy) -> dict[str, list[Geometry]]:
    known = geometry(policy)
    if known is None:
        return {"levels": [Geometry(count, base, 4) for count in (4, 8) for base in BASES_US[1:5]]}
    count, base = _nearest(COUNTS, known.count), _nearest(BASES_US, known.base_us)
    return {
        "first level": [replace(known, base_us=each) for each in _neighbours(BASES_US, base, 2)],
        "number of levels": [replace(known, count=each) for each in _neighbours(COUNTS, count, 2)],
        "ratio of levels": [replace(known, ratio=each) for each in RATIOS],
        "quanta": [replace(known, quanta_percent=each) for each in QUANTA_PERCENT],
    }


def _nearest(values: Sequence[int], value: int) -> int:
    return min(range(len(values)), key=lambda index: abs(math.log(values[index] / value)))


def _neighbours(values: Sequence[int], at: int, reach: int) -> Sequence[int]:
    return values[max(0, at - reach) : at + reach + 1]


def knobs(policy: Policy) -> Iterator[tuple[str, list[Policy]]]:
    """Every knob of a policy and the policies that turning it gives. They have fixed levels."""
    policy = replace(policy, source=Source.FIXED, classes=())
    yield "accounting", [replace(policy, accounting=accounting) for accounting in Accounting]
    yield "order", [replace(policy, order=order) for order in Order]
    for name, tables in _levels(policy).items():
        made = (table.levels() for table in tables if table.valid)
        yield name, [replace(policy, levels=levels, unmanaged_level=0) for levels in made]
    yield "beta", [replace(policy, beta_milli=beta) for beta in BETAS_MILLI]
    yield "preemptions", [replace(policy, max_preemptions=count) for count in PREEMPTIONS]
    yield "retention", [replace(policy, retention_milli=milli) for milli in RETENTIONS_MILLI]


@dataclass(frozen=True, slots=True)
class Tried:
    """A policy and its cost: lower is better, infinite when the run was abandoned because it could not win.

    `turned` is the knob that led to it.
    """

    policy: Policy
    turned: str
    cost: float


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search. `best` is the first policy when none was better; `ended` says why the search ended."""

    best: Tried
    tried: tuple[Tried, ...]
    ended: str


class OutOfTimeError(Exception):
    """Raised by a cost function when the budget is spent."""


class _Search:
    """State of a search. `cost(policy, limit)` may return infinity once it is certain to exceed the limit."""

    def __init__(self, against: Policy, cost: Callable[[Policy, float], float], most: int) -> None:
        self._cost, self._most = cost, most
        self.tried: list[Tried] = []
        self._known: set[str] = set()
        self._against = against
        self.best = self._try(against, "current", math.inf)

    @property
    def full(self) -> bool:
        return len(self.tried) >= self._most

    def _try(self, policy: Policy, turned: str, limit: float) -> Tried:
        self._known.add(key(policy))
        tried = Tried(policy, turned, self._cost(policy, limit))
        self.tried.append(tried)
        return tried

    def round(self, turned: str, policies: Sequence[Policy]) -> bool:
        """Tries the policies that are new; True when one of them is better by more than MARGIN."""
        before, best = self.best, self.best
        for policy in policies:
            policy = replace(policy, decision_interval_steps=self._against.decision_interval_steps)
            if self.full or key(policy) in self._known:
                continue
            tried = self._try(policy, turned, best.cost)
            if tried.cost < best.cost:
                best = tried
        if best.cost < before.cost * (1 - MARGIN):
            self.best = best
        return self.best is not before


def search(against: Policy, presets: Sequence[Policy], cost: Callable[[Policy, float], float], most: int) -> Found:
    """The best among the current policy, the presets, and those reached by turning one knob at a time.

    At most `most` policies are tried. `cost` may raise OutOfTimeError in every call but the first.
    """
    state = _Search(against, cost, most)
    try:
        state.round("preset", presets)
        turned = True
        while turned and not state.full:
            turned = False
            # The knobs are read again each time: turning one may enable another.
            for name in [name for name, _ in knobs(state.best.policy)]:
                policies = dict(knobs(state.best.policy)).get(name, [])
                turned |= state.round(name, [replace(policy, name="tuned") for policy in policies])
    except OutOfTimeError:
        return Found(state.best, tuple(state.tried), "the budget was spent")
    ended = "the limit on policies was reached" if state.full else "no knob gains more"
    return Found(state.best, tuple(state.tried), ended)
