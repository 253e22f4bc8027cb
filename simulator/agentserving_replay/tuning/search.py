"""Which policies are tried, and in which order: the presets first, then one knob of the best after the other. Pure.

Level tables are geometric (agentserving.contract.policy.geometric_levels): a count, the first bound, a ratio, and
quanta as shares of the levels' widths; that is four knobs instead of one for each level. The search is deterministic,
bounded by a count, and keeps the policy it has unless another one is better by more than MARGIN: of two that are as good, the one
that changes less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentserving.contract.policy import Accounting, Level, Order, Policy, Source, to_dict

# A knob is turned for a gain larger than this: smaller ones are chance.
MARGIN = 0.005

COUNTS, RATIOS, QUANTA_PERCENT = (2, 3, 4, 6, 8, 10), (2, 3, 4, 8), (50, 100, 200)
BASES_US = (15_000, 60_000, 250_000, 1_000_000, 4_000_000, 16_000_000)
BETAS_MILLI, PREEMPTIONS = (0, 5_000, 20_000, 100_000), (0, 16, 64)
RETENTIONS_MILLI = (0, 1_000, 3_000)
# A day: beyond it no call is told from another, and an AgentServingCluster takes no more.
MAX_BOUND_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Geometry:
    """A level table in four numbers."""

    count: int
    base_us: int
    ratio: int
    quanta_percent: int = 100

    def levels(self) -> tuple[Level, ...]:
        """Bounds and quanta in whole milliseconds, as an AgentServingCluster has them."""
        bounds = [self.base_us * self.ratio**index for index in range(self.count - 1)]
        lower = [0, *bounds]
        widths = (high - low for low, high in zip(lower, bounds, strict=False))
        quanta = (max(1, width * self.quanta_percent // 100_000) * 1000 for width in widths)
        return (*(Level(bound, quantum) for bound, quantum in zip(bounds, quanta, strict=True)), Level())

    @property
    def valid(self) -> bool:
        """False for bounds that nothing reaches."""
        return bool(self.base_us * self.ratio ** max(0, self.count - 2) <= MAX_BOUND_US)


def geometry(policy: Policy) -> Geometry | None:
    """Of a policy's levels; None when they are not geometric, or only one."""
    bounds = [level.upper_bound_us for level in policy.levels[:-1]]
    if not bounds:
        return None
    ratio = bounds[1] // bounds[0] if len(bounds) > 1 else 4
    percent = round(100 * policy.levels[0].quantum_us / bounds[0])
    found = Geometry(len(bounds) + 1, bounds[0], ratio, percent)
    return found if ratio > 1 and found.levels() == policy.levels else None


def key(policy: Policy) -> str:
    """The same for policies that do the same."""
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
        "first level": [replace(known, base_us=each) for each in _beside(BASES_US, base, 2)],
        "number of levels": [replace(known, count=each) for each in _beside(COUNTS, count, 2)],
        "ratio of levels": [replace(known, ratio=each) for each in RATIOS],
        "quanta": [replace(known, quanta_percent=each) for each in QUANTA_PERCENT],
    }


def _nearest(values: Sequence[int], value: int) -> int:
    return min(range(len(values)), key=lambda index: abs(math.log(values[index] / value)))


def _beside(values: Sequence[int], at: int, reach: int) -> Sequence[int]:
    return values[max(0, at - reach) : at + reach + 1]


def knobs(policy: Policy) -> Iterator[tuple[str, list[Policy]]]:
    """What may be turned, and the policies that gives; their levels are their own."""
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
    """A policy and what it cost (less is better; infinite: given up because it could not win)."""

    policy: Policy
    turned: str
    cost: float


@dataclass(frozen=True, slots=True)
class Found:
    """`best` is the policy the search began with when nothing was better. `ended`: why it ended."""

    best: Tried
    tried: tuple[Tried, ...]
    ended: str


class OutOfTimeError(Exception):
    """Raised by a cost function that may not go on."""


class _Search:
    """`cost(policy, limit)`: what a policy costs; may be infinite when it is certain to be above the limit."""

    def __init__(self, against: Policy, cost: Callable[[Policy, float], float], most: int) -> None:
        self._cost, self._most = cost, most
        self.tried: list[Tried] = []
        self._known: set[str] = set()
        self._against = against
        self.best = self._try(against, "in force", math.inf)

    @property
    def full(self) -> bool:
        return len(self.tried) >= self._most

    def _try(self, policy: Policy, turned: str, limit: float) -> Tried:
        self._known.add(key(policy))
        tried = Tried(policy, turned, self._cost(policy, limit))
        self.tried.append(tried)
        return tried

    def round(self, turned: str, policies: Sequence[Policy]) -> bool:
        """Tries those that are new; True when one of them is better by enough."""
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
    """The best of the policy in force, the presets, and what turning one knob after the other makes of the best.

    At most `most` policies are tried. `cost` may raise OutOfTimeError at any time but the first.
    """
    at = _Search(against, cost, most)
    try:
        at.round("preset", presets)
        turned = True
        while turned and not at.full:
            turned = False
            # The knobs of the best policy as it is now: turning one may make another one possible.
            for name in [name for name, _ in knobs(at.best.policy)]:
                policies = dict(knobs(at.best.policy)).get(name, [])
                turned |= at.round(name, [replace(policy, name="tuned") for policy in policies])
    except OutOfTimeError:
        return Found(at.best, tuple(at.tried), "the time was over")
    return Found(at.best, tuple(at.tried), "all policies that may be tried were" if at.full else "no knob gains more")
