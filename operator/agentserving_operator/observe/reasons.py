"""Every reason a condition can have, with its meaning. A closed list, so that programs can rely on it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """Ready is True when the four conditions after it are. ClientsAuthenticated is a choice, not a fault.

    EntrancesReady is about clients outside of the Kubernetes cluster; inside, calls are served without it.
    PolicyInForce is about parts of the policy that some engine leaves out; calls are ordered and served without them.
    """

    READY = "Ready"
    CONTROL_PLANE_READY = "ControlPlaneReady"
    STORE_READY = "StoreReady"
    ENGINES_READY = "EnginesReady"
    GATEWAY_READY = "GatewayReady"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    CLIENTS_AUTHENTICATED = "ClientsAuthenticated"
    ENTRANCES_READY = "EntrancesReady"
    POLICY_IN_FORCE = "PolicyInForce"


class Reason(StrEnum):
    """The comment above each member says when it is used."""

    # All conditions are met.
    READY = "Ready"
    # As many pods are ready as are needed.
    AVAILABLE = "Available"
    # spec.engine.replicas is 0 and calls are refused, or no program needs an engine.
    SCALED_TO_ZERO = "ScaledToZero"
    # The process table is in memory and is lost when the control plane restarts.
    IN_MEMORY = "InMemory"
    # Clients need keys.
    KEYS_NEEDED = "KeysNeeded"
    # Whoever reaches a port is served, as any tenant.
    OPEN_TO_ALL = "OpenToAll"
    # spec.gateway asks for no Ingress, HTTPRoute or load balancer.
    NOT_ASKED_FOR = "NotAskedFor"
    # No rollout is in progress.
    SETTLED = "Settled"
    # Nothing has failed.
    AS_EXPECTED = "AsExpected"

    # Pods are being replaced, or their number changes.
    ROLLING_OUT = "RollingOut"
    # Some engines have not acknowledged the policy.
    POLICY_PENDING = "PolicyPending"
    # An object has not been created yet.
    CREATING = "Creating"
    # Pods run but are not ready yet, and nothing indicates a failure.
    STARTING = "Starting"
    # No ingress controller, or provider of load balancers, has given an address.
    NO_ADDRESS = "NoAddress"
    # A Gateway does not serve the HTTPRoute; the message quotes it.
    ROUTE_NOT_ACCEPTED = "RouteNotAccepted"
    # The control plane did not answer.
    NOT_REACHABLE = "NotReachable"
    # The spec could not be parsed, so the cluster was not examined.
    NOT_LOOKED_AT = "NotLookedAt"

    # The engine process runs and has not served a call since its start.
    ENGINE_LOADING = "EngineLoading"
    # The engine process crashed or does not answer.
    ENGINE_DOWN = "EngineDown"
    # The engine process runs and makes no progress.
    ENGINE_STUCK = "EngineStuck"
    # The engine answered several calls in a row with errors while others served theirs.
    ENGINE_FAILING = "EngineFailing"
    # The engine's sidecar lost its connection to the control plane.
    ENGINE_LOST = "EngineLost"
    # Engines reject tickets: a clock is wrong, or tickets are forged.
    TICKETS_REJECTED = "TicketsRejected"

    # The Kubernetes scheduler finds no node for a pod; the message quotes it.
    UNSCHEDULABLE = "Unschedulable"
    # An image cannot be pulled.
    IMAGE_PULL_FAILED = "ImagePullFailed"
    # A container refers to something that does not exist, such as a Secret or one of its keys.
    CONTAINER_CONFIG_INVALID = "ContainerConfigInvalid"
    # A container ends again and again, and kubelet waits longer and longer before it starts it again.
    CRASHING = "Crashing"
    # A ResourceQuota is exhausted.
    QUOTA_EXCEEDED = "QuotaExceeded"
    # A volume of a pod cannot be mounted: its Secret, ConfigMap or claim does not exist, or its driver fails.
    VOLUME_NOT_MOUNTED = "VolumeNotMounted"
    # A PersistentVolumeClaim gets no volume.
    VOLUME_PENDING = "VolumePending"
    # A field of an object cannot be changed; the message says how to replace the object.
    CANNOT_BE_CHANGED = "CannotBeChanged"
    # Pods cannot be created for another reason.
    CREATE_FAILED = "CreateFailed"
    # The control plane cannot write to its store.
    STORE_UNHEALTHY = "StoreUnhealthy"
    # etcd refuses writes because its database reached its quota.
    STORE_FULL = "StoreFull"
    # Engines do not retain KV during tool waits although the policy says so; the message says why.
    RETENTION_OFF = "RetentionOff"
    # Engines do not bound the working set although the policy says so; the message says why.
    WORKING_SET_OFF = "WorkingSetOff"
    # The control plane refuses the policy.
    POLICY_REFUSED = "PolicyRefused"
    # The spec is invalid; the message names the field.
    INVALID_SPEC = "InvalidSpec"
    # The API server refused an object; the message quotes it.
    APPLY_REFUSED = "ApplyRefused"
    # An object of that name exists and belongs to someone else.
    NAME_TAKEN = "NameTaken"
    # spec.tls.issuer is CertManager, but cert-manager is not installed.
    CERT_MANAGER_MISSING = "CertManagerMissing"
    # spec.gateway.inferencePool is enabled, but the Gateway API Inference Extension is not installed.
    INFERENCE_EXTENSION_MISSING = "InferenceExtensionMissing"
    # spec.engine.nodes is more than 1, but LeaderWorkerSet is not installed.
    LEADER_WORKER_SET_MISSING = "LeaderWorkerSetMissing"
    # spec.gateway.httpRoute is set, but the Gateway API is not installed.
    GATEWAY_API_MISSING = "GatewayApiMissing"
    # Engines do what the policy says, the control plane has what an AgentServingTenant says.
    IN_FORCE = "InForce"
    # There is no AgentServingCluster of the name that an AgentServingTenant gives.
    CLUSTER_MISSING = "ClusterMissing"
    # Another AgentServingTenant describes the same tenant.
    TENANT_TAKEN = "TenantTaken"
    # The cluster has as many AgentServingTenants as its status can record.
    TOO_MANY_TENANTS = "TooManyTenants"
    # The control plane refuses what an AgentServingTenant says.
    TENANT_REFUSED = "TenantRefused"
    # A certificate was not renewed and is about to expire, or has; the message names its Secret.
    CERTIFICATE_EXPIRES = "CertificateExpires"
    # Pods have addresses of another family than spec.network.ipFamilies says.
    WRONG_IP_FAMILY = "WrongIpFamily"
    # An operator of another release looks after the cluster (an Event only).
    OTHER_OPERATOR = "OtherOperator"
    # The namespace is being deleted.
    NAMESPACE_TERMINATING = "NamespaceTerminating"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A problem that waiting does not solve."""

    reason: Reason
    message: str
