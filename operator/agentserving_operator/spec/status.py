"""The status that the operator writes into an AgentServingCluster: the source of its schema.

Times are RFC 3339. No program is named, only counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentserving_operator.spec.auth import ClientAuth
from agentserving_operator.spec.fields import choice, integer, items, struct, text

_MAX_INT = 2**53 - 1


class ConditionStatus(StrEnum):
    """As in Kubernetes."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition as in metav1.Condition."""

    type: str = text(
        "Ready, ControlPlaneReady, StoreReady, EnginesReady, GatewayReady, Progressing, Degraded, ClientsAuthenticated "
        "or EntrancesReady.",
        316,
    )
    status: ConditionStatus = choice("True, False or Unknown.")
    observed_generation: int | None = integer("Generation of the spec that it describes.", 0, _MAX_INT, default=None)
    last_transition_time: str = text("Time of the last change of its status.", 64, format="date-time")
    reason: str = text("One word, for programs.", 256, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    message: str = text("What is wrong and what to do, for people.", 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounts:
    """Numbers of engine pods."""

    replicas: int = integer("Existing pods.", 0, 100_000, default=0)
    ready: int = integer("Ready pods.", 0, 100_000, default=0)
    updated: int = integer("Pods of the latest revision.", 0, 100_000, default=0)
    summary: str = text("ready/wanted", 32, default="0/0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInForce:
    """The scheduling policy in force, from the control plane."""

    name: str = text("Name of a preset, or custom.", 128, default="")
    version: int = integer("Counts changes.", 0, _MAX_INT, default=0)
    observed_generation: int = integer(
        "Generation of the spec that every engine has acknowledged.", 0, _MAX_INT, default=0
    )
    pending_engines: int = integer("Engines that have not acknowledged it yet.", 0, 100_000, default=0)
    chosen: str | None = text("The preset whose order the policy auto has chosen.", 128, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingStatus:
    """The number of engines that programs need, and why."""

    desired: int = integer("Number of engines that there should be.", 0, 100_000, default=0)
    reason: str = text(
        "The signal that needs most (Context, Calls, Service, Waiting), or AtMinimum, AtMaximum, ScaleInDelayed, Idle, "
        "NoSignal, External.",
        64,
        default="",
    )
    last_scale_time: str | None = text("When desired changed last.", 64, default=None, format="date-time")
    draining: tuple[str, ...] = items(
        "Engines that the operator drains, or has drained, because fewer are needed.", 512, list_type="set",
        max_length=63,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """The observed state of a cluster."""

    observed_generation: int | None = integer(
        "Generation of the spec that this status describes.", 0, _MAX_INT, default=None
    )
    conditions: tuple[Condition, ...] = items("Conditions, by type.", 16, list_type="map", keys=("type",))
    client_auth: ClientAuth | None = choice(
        "What clients must present: as spec.auth.clients says, or what was in force when it said nothing.", default=None
    )
    operator: str | None = text(
        "Lease (namespace/name) of the operator that looks after this cluster; others leave it alone while it is held.",
        512, default=None,
    )  # fmt: skip
    url: str | None = text("Base URL for OpenAI clients inside the cluster.", 512, default=None)
    engines: EngineCounts | None = struct("Numbers of engine pods.", default=None)
    autoscaling: AutoscalingStatus | None = struct("The number of engines that programs need.", default=None)
    selector: str | None = text("Label selector of engine pods, for autoscalers.", 512, default=None)
    policy: PolicyInForce | None = struct("The scheduling policy in force.", default=None)
    tenants: tuple[str, ...] = items(
        "Tenants whose settings come from AgentServingTenants: they are removed with these.", 1_000,
        list_type="set", max_length=64,
    )  # fmt: skip
    programs: int | None = integer("Live programs.", 0, _MAX_INT, default=None)
