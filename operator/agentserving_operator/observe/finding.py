"""A condition before it has a time and a generation."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_operator.observe.reasons import Reason
from agentserving_operator.spec.status import ConditionStatus


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out for one condition."""

    status: ConditionStatus
    reason: Reason
    message: str
