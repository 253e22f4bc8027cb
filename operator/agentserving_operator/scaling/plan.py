"""Which engines leave, and when they may. Pure.

A StatefulSet removes engines only at the ends of its ordinals: at the upper end by fewer replicas, at the lower one by
a larger start. So of the two engines at the ends the one leaves whose programs have least context to compute again. It
is drained first: programs move to other engines at their next call, and it goes when its last call has ended. A
LeaderWorkerSet's groups always begin with 0, so there the highest one leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from agentserving_operator.scaling.decision import Need


@dataclass(frozen=True, slots=True)
class Range:
    """The ordinals of a StatefulSet's pods: `count` from `start` on."""

    start: int = 0
    count: int = 0

    @property
    def ordinals(self) -> range:
        """All of them."""
        return range(self.start, self.start + self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one engine has: tokens of context of live programs, and calls in flight."""

    kept_tokens: int = 0
    calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a control plane says. `work` by engine id."""

    need: Need
    work: Mapping[str, Work]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`leaving` are to be drained; `range` is what the StatefulSet should have now."""

    leaving: frozenset[int] = field(default=frozenset())
    range: Range


def plan(
    live: Range, desired: int, work: Mapping[int, Work], *, leaving: Collection[int], drained: Collection[int],
    from_zero: bool = False,
) -> Plan:  # fmt: skip
    """What to do next for `desired` engines. Everything is by ordinal.

    `leaving` were chosen before; `drained` of these take no new programs since before `work` was seen. An engine that
    `work` does not have is not known to the control plane: it has no calls. `from_zero`: engines leave at the upper end
    only, as those of a LeaderWorkerSet.
    """
    if desired >= live.count:
        return Plan(range=_extended(live, desired))
    chosen = _chosen(live, live.count - desired, work, leaving, from_zero)
    low, high = live.start, live.start + live.count - 1

    def may_go(ordinal: int) -> bool:
        return ordinal in chosen and ordinal in drained and not work.get(ordinal, Work()).calls

    while low <= high and may_go(high):
        high -= 1
    while not from_zero and low <= high and may_go(low):
        low += 1
    left = Range(low, high - low + 1) if high >= low else Range(0, 0)
    return Plan(leaving=frozenset(each for each in chosen if low <= each <= high), range=left)


def _extended(live: Range, desired: int) -> Range:
    """More engines: ordinals that are free below come first, so that they do not grow for ever."""
    below = min(live.start, desired - live.count)
    return Range(live.start - below, desired)


def _chosen(
    live: Range, surplus: int, work: Mapping[int, Work], before: Collection[int], from_zero: bool
) -> frozenset[int]:
    """`surplus` engines from the two ends; those that were chosen before go first, or the choice would flap."""
    low, high = live.start, live.start + live.count - 1
    chosen = set[int]()

    def worth(ordinal: int) -> tuple[bool, int, int]:
        return ordinal not in before, work.get(ordinal, Work()).kept_tokens, -ordinal

    while len(chosen) < surplus:
        if from_zero or worth(high) <= worth(low):
            chosen.add(high)
            high -= 1
        else:
            chosen.add(low)
            low += 1
    return frozenset(chosen)
