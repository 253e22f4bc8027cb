"""Bars: a figure, its goal, and whether the measurement shows that the goal is met. Pure; `records` writes them down.

A bar is judged by the bad end of its 95 % interval. A mean on the right side of the goal proves nothing while the
interval still contains the goal: such a bar is "not shown".
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agentserving_replay.figures import interval


class Verdict(StrEnum):
    """What a measurement says about a goal."""

    MET = "met"
    MISSED = "missed"
    # The interval contains the goal, or there was only one run.
    NOT_SHOWN = "not shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """`low` and `high` bound the mean's 95 % interval; they are infinite after a single run."""

    name: str
    value: float
    low: float
    high: float
    # "<= 80" or ">= 0.97", in `unit`.
    goal: str
    unit: str
    # What the figure is a ratio to, or the conditions it was measured under.
    against: str
    runs: int
    # Programs or calls of the load that failed. Means over the survivors favour the side that lost the others.
    failed: int = 0
    # The figure was computed with constants fitted to the same run.
    in_sample: bool = False

    @property
    def verdict(self) -> Verdict:
        """MET when the whole interval meets the goal, MISSED when none of it does or when calls failed."""
        sign, _, bound = self.goal.partition(" ")
        meets = {"<=": operator.le, ">=": operator.ge}[sign]
        good, bad = (self.low, self.high) if sign == "<=" else (self.high, self.low)
        if self.failed or not meets(good, float(bound)):
            return Verdict.MISSED
        return Verdict.MET if meets(bad, float(bound)) else Verdict.NOT_SHOWN

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: an unbounded interval is null."""
        ends = {"low": self.low, "high": self.high}
        return {
            "name": self.name,
            "value": round(self.value, 4),
            **{name: round(end, 4) if math.isfinite(end) else None for name, end in ends.items()},
            "goal": self.goal,
            "verdict": str(self.verdict),
            "unit": self.unit,
            "against": self.against,
            "runs": self.runs,
            "failed": self.failed,
            "in_sample": self.in_sample,
        }


def bar(
    name: str, values: Sequence[float], goal: str, unit: str, against: str, *, failed: int = 0, in_sample: bool = False
) -> Bar:
    """The mean of independent runs with its 95 % interval."""
    mean, half = interval(values)
    return Bar(
        name=name,
        value=mean,
        low=mean - half,
        high=mean + half,
        goal=goal,
        unit=unit,
        against=against,
        runs=len(values),
        failed=failed,
        in_sample=in_sample,
    )
