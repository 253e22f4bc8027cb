"""How the number of engines follows what programs need."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving_operator.spec.fields import Rule, choice, integer


class ScalerType(StrEnum):
    """Who decides the number of engines."""

    OPERATOR = "Operator"
    EXTERNAL = "External"


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """The number of engines follows what programs need; engines that leave finish their calls first."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule("self.min <= self.max", "min must be at most max", lambda a: a.least <= a.most, "min"),
    )

    scaler: ScalerType = choice(
        "Operator: the operator decides. External: spec.engine.replicas says how many, within min and max, and KEDA or "
        "a HorizontalPodAutoscaler sets it.",
        default=ScalerType.OPERATOR,
    )
    least: int = integer(
        "Engines that are always there; 0: none while no program needs one, calls are held until there is one.",
        0,
        256,
        default=1,
        wire="min",
    )
    most: int = integer("Engines at most.", 1, 256, wire="max")
    target_percent: int = integer(
        "Share of their KV cache and of their slots that programs may need before there is one more engine.",
        10,
        100,
        default=80,
    )
    scale_in_seconds: int = integer(
        "An engine leaves when there were too many for this long.", 0, 3_600, default=300
    )  # fmt: skip
    idle_seconds: int = integer(
        "With min 0: the last engine leaves after this time without calls.", 1, 86_400, default=600
    )
    hold_seconds: int = integer(
        "With min 0: how long a gateway holds a call while no engine is there; after that it is refused.",
        1,
        1_800,
        default=300,
    )

    def bounded(self, count: int) -> int:
        """The nearest number of engines that is allowed."""
        return min(max(count, self.least), self.most)
