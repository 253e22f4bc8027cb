"""The status of a cluster from what was seen of its objects. Pure: the time is an argument.

`Ready` is for waiting on, the four below it for finding out where it hurts, `Progressing` for whether to wait,
`Degraded` for whether to look. `reasons` lists what each may say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentserving_operator.manifests import Cluster, Component, Manifest
from agentserving_operator.manifests.common import selector
from agentserving_operator.manifests.services import gateway_url
from agentserving_operator.observe.reasons import ConditionType, Reason, Trouble
from agentserving_operator.observe.trouble import trouble_of
from agentserving_operator.spec.cluster import StoreType
from agentserving_operator.spec.parsing import plain
from agentserving_operator.spec.status import ClusterStatus, Condition, ConditionStatus, EngineCounts, PolicyInForce

MAX_MESSAGE = 4096
WORKLOADS = {
    Component.CONTROL_PLANE: "Deployment",
    Component.GATEWAY: "Deployment",
    Component.ENGINE: "StatefulSet",
    Component.ETCD: "StatefulSet",
}
PARTS = {
    Component.CONTROL_PLANE: ConditionType.CONTROL_PLANE_READY,
    Component.ETCD: ConditionType.STORE_READY,
    Component.ENGINE: ConditionType.ENGINES_READY,
    Component.GATEWAY: ConditionType.GATEWAY_READY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What the control plane says. `policy_generation`: of the spec whose policy it has; 0 = of none of ours."""

    programs: int
    policy_name: str
    policy_version: int
    policy_generation: int
    pending_engines: int
    store_healthy: bool
    store_message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What there is. `objects` by kind and name; `overview` None = the control plane did not answer."""

    objects: Mapping[tuple[str, str], Manifest]
    pods: Sequence[Manifest]
    overview: Overview | None = None
    troubles: Sequence[Trouble] = field(default=())


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition before it has a time and a generation."""

    status: ConditionStatus
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class _Part:
    """One component's workload: pods wanted, ready and of the newest revision."""

    wanted: int
    ready: int
    replicas: int
    updated: int
    settled: bool
    trouble: Trouble | None
    exists: bool


def status_of(cluster: Cluster, observed: Observed, previous: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The whole status as plain JSON. `previous` is the status before; `now` RFC 3339."""
    parts = {part: _part(cluster, observed, part) for part in WORKLOADS}
    findings = {
        PARTS[part]: _pods_ready(cluster, part, found) for part, found in parts.items() if part is not Component.ETCD
    }
    findings[ConditionType.STORE_READY] = _store(cluster, observed, parts[Component.ETCD])
    there = [part for part in parts if part is not Component.ETCD or cluster.spec.store.type is StoreType.ETCD]
    findings[ConditionType.READY] = _ready(findings, observed.troubles)
    findings[ConditionType.PROGRESSING] = _progressing({part: parts[part] for part in there}, observed)
    findings[ConditionType.DEGRADED] = _degraded([parts[part].trouble for part in there], observed)
    engines = parts[Component.ENGINE]
    return dict(
        plain(
            ClusterStatus(
                observed_generation=cluster.generation,
                conditions=conditions(findings, cluster.generation, previous, now),
                url=gateway_url(cluster),
                engines=EngineCounts(
                    replicas=engines.replicas,
                    ready=engines.ready,
                    updated=engines.updated,
                    summary=f"{engines.ready}/{engines.wanted}",
                ),
                selector=",".join(f"{k}={v}" for k, v in selector(cluster.name, Component.ENGINE).items()),
                policy=_policy(observed, previous),
                programs=observed.overview.programs if observed.overview else previous.get("programs"),
            )
        )
    )


def invalid_status(trouble: Trouble, generation: int, previous: Mapping[str, Any], now: str) -> dict[str, Any]:
    """Of a spec that makes no cluster: what was known stays, and the conditions say what is wrong."""
    unknown = Finding(ConditionStatus.UNKNOWN, Reason.NOT_LOOKED_AT, "the spec cannot be used; see Ready")
    findings = dict.fromkeys(ConditionType, unknown)
    findings[ConditionType.READY] = Finding(ConditionStatus.FALSE, trouble.reason, trouble.message)
    findings[ConditionType.DEGRADED] = Finding(ConditionStatus.TRUE, trouble.reason, trouble.message)
    made = ClusterStatus(
        observed_generation=generation, conditions=conditions(findings, generation, previous, now)
    )  # fmt: skip
    return {**previous, **plain(made)}


def conditions(
    findings: Mapping[ConditionType, Finding], generation: int, previous: Mapping[str, Any], now: str
) -> tuple[Condition, ...]:
    """With the time of the last change of status, not of words."""
    before = {each["type"]: each for each in previous.get("conditions", [])}
    made = []
    for kind in ConditionType:
        finding, old = findings[kind], before.get(kind.value, {})
        same = old.get("status") == finding.status.value
        made.append(
            Condition(
                type=kind.value,
                status=finding.status,
                observed_generation=generation,
                last_transition_time=str(old["lastTransitionTime"]) if same else now,
                reason=finding.reason.value,
                message=finding.message[:MAX_MESSAGE],
            )
        )
    return tuple(made)


def _part(cluster: Cluster, observed: Observed, component: Component) -> _Part:
    workload = observed.objects.get((WORKLOADS[component], cluster.child(component)))
    wanted_labels = selector(cluster.name, component).items()
    pods = [pod for pod in observed.pods if wanted_labels <= pod["metadata"].get("labels", {}).items()]
    trouble = trouble_of(workload, pods)
    if workload is None:
        return _Part(0, 0, 0, 0, False, trouble, False)
    status, wanted = workload.get("status", {}), int(workload["spec"].get("replicas", 1))
    # A StatefulSet that has not been touched since it was made does not count updatedReplicas.
    replicas, ready = int(status.get("replicas", 0)), int(status.get("readyReplicas", 0))
    updated = int(status.get("updatedReplicas", 0))
    seen = int(status.get("observedGeneration", 0)) >= int(workload["metadata"].get("generation", 0))
    return _Part(
        wanted, ready if seen else min(ready, wanted), replicas, updated,
        seen and updated >= wanted and replicas == wanted, trouble, True,
    )  # fmt: skip


def _pods_ready(cluster: Cluster, component: Component, part: _Part, needed: int | None = None) -> Finding:
    name = cluster.child(component)
    if not part.exists:
        return Finding(ConditionStatus.FALSE, Reason.CREATING, f"{WORKLOADS[component]} {name} is not there yet")
    if component is Component.ENGINE and part.wanted == 0:
        return Finding(ConditionStatus.TRUE, Reason.SCALED_TO_ZERO, "spec.engine.replicas is 0: calls are refused")
    counted = f"{part.ready} of {part.wanted} pods ready"
    if part.ready >= (part.wanted if needed is None else needed):
        return Finding(ConditionStatus.TRUE, Reason.AVAILABLE, counted)
    if part.trouble is not None:
        return Finding(ConditionStatus.FALSE, part.trouble.reason, f"{counted}: {part.trouble.message}")
    loading = "; loading a model takes minutes" if component is Component.ENGINE else ""
    return Finding(ConditionStatus.FALSE, Reason.STARTING, f"{counted}{loading}")


def _store(cluster: Cluster, observed: Observed, etcd: _Part) -> Finding:
    kind, overview = cluster.spec.store.type, observed.overview
    if overview is not None and not overview.store_healthy:
        return Finding(
            ConditionStatus.FALSE, Reason.STORE_UNHEALTHY, f"the control plane says: {overview.store_message}"
        )
    if kind is StoreType.MEMORY:
        return Finding(ConditionStatus.TRUE, Reason.IN_MEMORY, "accounts are lost when the control plane restarts")
    if kind is StoreType.ETCD:
        # A majority is enough to write.
        return _pods_ready(cluster, Component.ETCD, etcd, etcd.wanted // 2 + 1)
    if overview is None:
        return Finding(ConditionStatus.UNKNOWN, Reason.NOT_REACHABLE, "the control plane has not told yet")
    return Finding(ConditionStatus.TRUE, Reason.AVAILABLE, "the control plane writes to it")


def _ready(findings: Mapping[ConditionType, Finding], troubles: Sequence[Trouble]) -> Finding:
    for trouble in troubles:
        return Finding(ConditionStatus.FALSE, trouble.reason, trouble.message)
    for kind in ConditionType:
        finding = findings.get(kind)
        if finding is not None and finding.status is not ConditionStatus.TRUE:
            return Finding(ConditionStatus.FALSE, finding.reason, f"{kind}: {finding.message}")
    return Finding(ConditionStatus.TRUE, Reason.READY, "programs are served")


def _progressing(parts: Mapping[Component, _Part], observed: Observed) -> Finding:
    under_way = [
        f"{component}: {part.updated} of {part.wanted} pods are new, {part.replicas} in all"
        for component, part in parts.items()
        if not part.settled
    ]
    if under_way:
        return Finding(ConditionStatus.TRUE, Reason.ROLLING_OUT, "; ".join(under_way))
    overview = observed.overview
    if overview is not None and overview.pending_engines:
        told = f"{overview.pending_engines} engines have not acknowledged policy {overview.policy_name}"
        return Finding(ConditionStatus.TRUE, Reason.POLICY_PENDING, told)
    return Finding(ConditionStatus.FALSE, Reason.SETTLED, "all pods are as the spec has them")


def _degraded(of_parts: Sequence[Trouble | None], observed: Observed) -> Finding:
    troubles = [*observed.troubles, *(trouble for trouble in of_parts if trouble is not None)]
    if not troubles:
        return Finding(ConditionStatus.FALSE, Reason.AS_EXPECTED, "nothing has failed")
    return Finding(ConditionStatus.TRUE, troubles[0].reason, "; ".join(trouble.message for trouble in troubles))


def _policy(observed: Observed, previous: Mapping[str, Any]) -> PolicyInForce | None:
    overview = observed.overview
    before = previous.get("policy") or {}
    if overview is None:
        # What was in force is, as far as anybody knows.
        return None if not before else PolicyInForce(
            name=before.get("name", ""), version=before.get("version", 0),
            observed_generation=before.get("observedGeneration", 0), pending_engines=before.get("pendingEngines", 0),
        )  # fmt: skip
    in_force = overview.policy_generation if overview.policy_generation and not overview.pending_engines else 0
    return PolicyInForce(
        name=overview.policy_name,
        version=overview.policy_version,
        observed_generation=in_force or before.get("observedGeneration", 0),
        pending_engines=overview.pending_engines,
    )
