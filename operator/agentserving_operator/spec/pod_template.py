"""What users may say about the pods of a part: fields of a pod template, merged over ours (`manifests.pod_template`).

The fields are listed, so that one that may not be set is refused at apply ("unknown field"); their content is
Kubernetes' own and is checked by the API server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentserving_operator.spec.fields import (
    flag_or_absent,
    foreign,
    foreign_items,
    mapping_or_absent,
    struct,
    text,
)

Foreign = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodMetadata:
    """Labels and annotations of the pods, besides ours."""

    labels: Mapping[str, str] | None = mapping_or_absent("Further labels.", 64, 63)
    annotations: Mapping[str, str] | None = mapping_or_absent("Further annotations.", 64, 16_384)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpec:
    """As the fields of the same names in a pod's spec."""

    containers: tuple[Foreign, ...] | None = foreign_items(
        "Further containers; under the name of one of ours: env, envFrom, resources, securityContext, volumeMounts, "
        "volumeDevices, and the times of probes.",
        16,
        keys=("name",),
    )
    init_containers: tuple[Foreign, ...] | None = foreign_items(
        "Further init containers, which run after ours; ours as in containers.", 16, keys=("name",)
    )
    volumes: tuple[Foreign, ...] | None = foreign_items("Further volumes.", 32, keys=("name",))
    affinity: Foreign | None = foreign("Merged with the node affinity of engine.accelerator.")
    node_selector: Mapping[str, str] | None = mapping_or_absent("Further node labels.", 32, 63)
    tolerations: tuple[Foreign, ...] | None = foreign_items("Instead of ours.", 32)
    topology_spread_constraints: tuple[Foreign, ...] | None = foreign_items("Merged with ours by topologyKey.", 16)
    priority_class_name: str | None = text("Priority of the pods.", 253, default=None)
    preemption_policy: str | None = text("Whether they preempt others.", 32, default=None)
    runtime_class_name: str | None = text("Runtime of the containers.", 253, default=None)
    scheduler_name: str | None = text("Scheduler of the pods.", 253, default=None)
    service_account_name: str | None = text("Instead of the part's own ServiceAccount.", 253, default=None)
    automount_service_account_token: bool | None = flag_or_absent("Absent: false; no part needs a token.")
    image_pull_secrets: tuple[Foreign, ...] | None = foreign_items("Further Secrets for pulls.", 16, keys=("name",))
    security_context: Foreign | None = foreign("Merged with ours.")
    host_network: bool | None = flag_or_absent("NetworkPolicies do not apply to pods in the node's network.")
    host_ipc: bool | None = flag_or_absent("For NCCL over the node's shared memory.", wire="hostIPC")
    dns_policy: str | None = text(
        "Absent: ClusterFirst, in the node's network ClusterFirstWithHostNet.", 32, default=None
    )
    dns_config: Foreign | None = foreign("Merged with the policy's.")
    host_aliases: tuple[Foreign, ...] | None = foreign_items("Further lines of /etc/hosts.", 32)
    resource_claims: tuple[Foreign, ...] | None = foreign_items(
        "Devices by dynamic resource allocation.", 16, keys=("name",)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTemplate:
    """Merged over the pods that the operator makes, by the rules of Kubernetes' strategic merge patch."""

    metadata: PodMetadata | None = struct("Labels and annotations.", default=None)
    spec: PodSpec | None = struct("The pod.", default=None)
