"""A policy in force, as one value. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentserving.contract.policy import Policy


class Balancer(StrEnum):
    """How the engine of a call is chosen (engines/load_balancer.py)."""

    ROUND_ROBIN = "round_robin"
    LEAST_USED = "least_used"
    PROGRAM_LOCALITY = "program_locality"
    PREFIX_AWARE = "prefix_aware"


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """`version` counts up by one for each change of the policy or the balancer."""

    version: int
    policy: Policy
    balancer: Balancer
