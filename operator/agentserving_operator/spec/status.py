"""What the operator writes into an AgentServingCluster's status: the source of its schema.

Times are RFC 3339. Nothing here names a program: counts only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentserving_operator.spec.fields import choice, integer, items, struct, text

_MAX_INT = 2**53 - 1


class ConditionStatus(StrEnum):
    """Kubernetes' own."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """As metav1.Condition."""

    type: str = text("Ready, ControlPlaneReady, StoreReady, EnginesReady, GatewayReady, Progressing or Degraded.", 316)
    status: ConditionStatus = choice("True, False or Unknown.")
    observed_generation: int | None = integer("Generation it was found at.", 0, _MAX_INT, default=None)
    last_transition_time: str = text("When its status changed last.", 64, format="date-time")
    reason: str = text("One word, for programs.", 256, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    message: str = text("What is the matter and what to do, for people.", 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounts:
    """Engines."""

    replicas: int = integer("Pods there are.", 0, 100_000, default=0)
    ready: int = integer("Pods that serve.", 0, 100_000, default=0)
    updated: int = integer("Pods of the newest revision.", 0, 100_000, default=0)
    summary: str = text("ready/wanted", 32, default="0/0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInForce:
    """What the control plane says."""

    name: str = text("Preset or custom.", 128, default="")
    version: int = integer("Counts changes.", 0, _MAX_INT, default=0)
    observed_generation: int = integer(
        "Generation of the spec that every engine has acknowledged.", 0, _MAX_INT, default=0
    )
    pending_engines: int = integer("Engines that have not acknowledged it yet.", 0, 100_000, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """The whole."""

    observed_generation: int | None = integer("Generation that the rest speaks of.", 0, _MAX_INT, default=None)
    conditions: tuple[Condition, ...] = items("See the list of reasons.", 16, list_type="map", keys=("type",))
    url: str | None = text("Base URL for OpenAI clients inside the cluster.", 512, default=None)
    engines: EngineCounts | None = struct("Engines.", default=None)
    selector: str | None = text("Of engine pods, for `kubectl scale` and autoscalers.", 512, default=None)
    policy: PolicyInForce | None = struct("The scheduling policy in force.", default=None)
    programs: int | None = integer("Programs that live.", 0, _MAX_INT, default=None)
