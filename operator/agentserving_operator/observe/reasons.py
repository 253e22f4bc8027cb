"""Every reason that a condition may have, each with what it means: a closed list, for programs to tell apart."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """Ready is true when the four between it and Progressing are."""

    READY = "Ready"
    CONTROL_PLANE_READY = "ControlPlaneReady"
    STORE_READY = "StoreReady"
    ENGINES_READY = "EnginesReady"
    GATEWAY_READY = "GatewayReady"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"


class Reason(StrEnum):
    """The comment under each says when."""

    # All is well.
    READY = "Ready"
    # As many pods serve as are needed.
    AVAILABLE = "Available"
    # No engines are wanted: calls are refused until there are some.
    SCALED_TO_ZERO = "ScaledToZero"
    # The table is in memory, and lost when the control plane restarts.
    IN_MEMORY = "InMemory"
    # Nothing is being changed.
    SETTLED = "Settled"
    # Nothing has failed.
    AS_EXPECTED = "AsExpected"

    # Pods are being replaced, or their number is changed.
    ROLLING_OUT = "RollingOut"
    # Not every engine has acknowledged the policy.
    POLICY_PENDING = "PolicyPending"
    # An object has not been made yet.
    CREATING = "Creating"
    # Pods run and are not ready yet; nothing speaks against them.
    STARTING = "Starting"
    # The control plane could not be asked.
    NOT_REACHABLE = "NotReachable"
    # The spec could not be read, so nothing was looked at.
    NOT_LOOKED_AT = "NotLookedAt"

    # The scheduler finds no node; the message has its words.
    UNSCHEDULABLE = "Unschedulable"
    # An image cannot be had.
    IMAGE_PULL_FAILED = "ImagePullFailed"
    # A container refers to what is not there: a Secret, or a key in it.
    CONTAINER_CONFIG_INVALID = "ContainerConfigInvalid"
    # A container ends again and again.
    CRASHING = "Crashing"
    # A ResourceQuota leaves no room.
    QUOTA_EXCEEDED = "QuotaExceeded"
    # Pods cannot be created for another reason.
    CREATE_FAILED = "CreateFailed"
    # The control plane cannot write to its store.
    STORE_UNHEALTHY = "StoreUnhealthy"
    # The control plane refuses the policy.
    POLICY_REFUSED = "PolicyRefused"
    # The spec makes no cluster; the message names the field.
    INVALID_SPEC = "InvalidSpec"
    # The API server refused an object; the message has its words.
    APPLY_REFUSED = "ApplyRefused"
    # An object of that name is there and not ours.
    NAME_TAKEN = "NameTaken"
    # spec.tls.issuer is CertManager, and the API server does not know its Certificates.
    CERT_MANAGER_MISSING = "CertManagerMissing"
    # The namespace is going.
    NAMESPACE_TERMINATING = "NamespaceTerminating"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that does not get well by waiting."""

    reason: Reason
    message: str
