"""The status of a cluster, from what was observed of its objects and its control plane. Pure: time is an argument.

`Ready` is the condition to wait for, the four after it locate a problem, `Progressing` says whether waiting helps, and
`Degraded` says whether someone should look. `reasons` lists what each of them may say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentserving_operator.manifests import AgentServingCluster, Component, Manifest
from agentserving_operator.manifests.common import keys_are_needed, selector
from agentserving_operator.manifests.engine_group import KIND as GROUP
from agentserving_operator.manifests.services import gateway_url
from agentserving_operator.observe.engine_states import engine_trouble, rejection_trouble
from agentserving_operator.observe.entrances import entrances_of
from agentserving_operator.observe.finding import Finding
from agentserving_operator.observe.overview import Overview
from agentserving_operator.observe.policy_in_force import policy_in_force
from agentserving_operator.observe.reasons import ConditionType, Reason, Trouble
from agentserving_operator.observe.trouble import trouble_of
from agentserving_operator.observe.warnings import are_waiting, claim_trouble, warning_trouble
from agentserving_operator.spec.parsing import plain
from agentserving_operator.spec.status import (
    AutoscalingStatus,
    ClusterStatus,
    Condition,
    ConditionStatus,
    EngineCounts,
    PolicyInForce,
)
from agentserving_operator.spec.store import StoreType

MAX_MESSAGE = 4096
WORKLOADS = {
    Component.CONTROL_PLANE: "Deployment",
    Component.GATEWAY: "Deployment",
    Component.ENGINE: "StatefulSet",
    Component.ETCD: "StatefulSet",
    Component.BATCHES: "StatefulSet",
}
CONDITIONS = {
    Component.CONTROL_PLANE: ConditionType.CONTROL_PLANE_READY,
    Component.ETCD: ConditionType.STORE_READY,
    Component.ENGINE: ConditionType.ENGINES_READY,
    Component.GATEWAY: ConditionType.GATEWAY_READY,
}
# etcd's words for a database at its quota, as the control plane passes them on.
_NO_SPACE = ("database space exceeded", "NOSPACE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What exists. `objects` by kind and name; `overview` None = the control plane did not answer.

    `tenants`: those to record in the status (`observe.tenants`). `expiring`: about certificates near their end.
    """

    objects: Mapping[tuple[str, str], Manifest]
    pods: Sequence[Manifest]
    overview: Overview | None = None
    troubles: Sequence[Trouble] = field(default=())
    # Events of type Warning, while something waits.
    warnings: Sequence[Manifest] = ()
    tenants: tuple[str, ...] = ()
    expiring: Trouble | None = None
    # None = without autoscaling.
    autoscaling: AutoscalingStatus | None = None
    # Lease of the operator, "" = it has none.
    operator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workload:
    """One component's workload in numbers of pods; `pods` are the names of those that are not being deleted."""

    exists: bool
    wanted: int = 0
    ready: int = 0
    replicas: int = 0
    updated: int = 0
    settled: bool = False
    pods: frozenset[str] = frozenset()
    trouble: Trouble | None = None


def status_of(
    cluster: AgentServingCluster, observed: Observed, previous: Mapping[str, Any], now: str
) -> dict[str, Any]:  # fmt: skip
    """The whole status as plain JSON. `previous` is the last status; `now` is RFC 3339."""
    workloads = {component: _workload(cluster, observed, component) for component in WORKLOADS}
    findings = {
        CONDITIONS[component]: _pods_ready(cluster, component, workloads[component])
        for component in (Component.CONTROL_PLANE, Component.GATEWAY)
    }
    engines = workloads[Component.ENGINE]
    of_engines = _engine_trouble(observed.overview, engines)
    findings[ConditionType.ENGINES_READY] = _engines_ready(cluster, engines, of_engines)
    findings[ConditionType.STORE_READY] = _store_ready(cluster, observed, workloads[Component.ETCD])
    if cluster.spec.store.type is not StoreType.ETCD:
        del workloads[Component.ETCD]
    if not cluster.spec.batches.enabled:
        del workloads[Component.BATCHES]
    findings[ConditionType.READY] = _ready(findings, observed.troubles)
    findings[ConditionType.PROGRESSING] = _progressing(workloads, observed)
    findings[ConditionType.DEGRADED] = _degraded([each.trouble for each in workloads.values()], of_engines, observed)
    findings[ConditionType.CLIENTS_AUTHENTICATED] = _clients(cluster)
    findings[ConditionType.ENTRANCES_READY] = _entrances(cluster, observed)
    findings[ConditionType.POLICY_IN_FORCE] = policy_in_force(observed.overview)
    status = ClusterStatus(
        observed_generation=cluster.generation,
        conditions=conditions(findings, cluster.generation, previous, now),
        client_auth=cluster.client_auth,
        operator=observed.operator or None,
        url=gateway_url(cluster),
        engines=EngineCounts(
            replicas=engines.replicas,
            ready=engines.ready,
            updated=engines.updated,
            summary=f"{engines.ready}/{engines.wanted}",
        ),
        autoscaling=_autoscaling(observed, previous, now),
        selector=",".join(f"{k}={v}" for k, v in selector(cluster.name, Component.ENGINE).items()),
        policy=_policy(observed, previous),
        tenants=observed.tenants,
        programs=observed.overview.programs if observed.overview else previous.get("programs"),
    )
    return dict(plain(status))


def invalid_status(trouble: Trouble, generation: int, previous: Mapping[str, Any], now: str) -> dict[str, Any]:
    """Status of a cluster whose spec is invalid: what was known stays, and the conditions name the problem."""
    unknown = Finding(ConditionStatus.UNKNOWN, Reason.NOT_LOOKED_AT, "the spec cannot be used; see Ready")
    findings = dict.fromkeys(ConditionType, unknown)
    findings[ConditionType.READY] = Finding(ConditionStatus.FALSE, trouble.reason, trouble.message)
    findings[ConditionType.DEGRADED] = Finding(ConditionStatus.TRUE, trouble.reason, trouble.message)
    status = ClusterStatus(
        observed_generation=generation, conditions=conditions(findings, generation, previous, now)
    )  # fmt: skip
    return {**previous, **plain(status)}


def conditions(
    findings: Mapping[ConditionType, Finding], generation: int, previous: Mapping[str, Any], now: str
) -> tuple[Condition, ...]:
    """Conditions with the time at which their status, not their message, changed last."""
    before = {each["type"]: each for each in previous.get("conditions", [])}
    found = []
    for kind in ConditionType:
        finding, old = findings[kind], before.get(kind.value, {})
        same = old.get("status") == finding.status.value
        found.append(
            Condition(
                type=kind.value,
                status=finding.status,
                observed_generation=generation,
                last_transition_time=str(old["lastTransitionTime"]) if same else now,
                reason=finding.reason.value,
                message=finding.message[:MAX_MESSAGE],
            )
        )
    return tuple(found)


def _workload(cluster: AgentServingCluster, observed: Observed, component: Component) -> _Workload:
    workload, pods = _parts_of(cluster, observed, component)
    trouble = _why_not(workload, pods, observed.warnings)
    if workload is None:
        return _Workload(exists=False, trouble=trouble)
    status, wanted = workload.get("status", {}), int(workload["spec"].get("replicas", 1))
    replicas, ready = int(status.get("replicas", 0)), int(status.get("readyReplicas", 0))
    updated = int(status.get("updatedReplicas", 0))
    # Until the controller has seen our last change, its numbers are those of the version before.
    generation = int(workload["metadata"].get("generation", 0))
    # Older LeaderWorkerSets do not say which generation they have seen.
    unsaid = generation if workload["kind"] == GROUP and status else 0
    is_current = int(status.get("observedGeneration", unsaid)) >= generation
    return _Workload(
        exists=True,
        wanted=wanted,
        ready=ready if is_current else min(ready, wanted),
        replicas=replicas,
        updated=updated,
        settled=is_current and updated >= wanted and replicas == wanted,
        pods=frozenset(pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]),
        trouble=trouble,
    )


def _parts_of(
    cluster: AgentServingCluster, observed: Observed, component: Component
) -> tuple[Manifest | None, list[Manifest]]:
    """Its workload and pods; of engines on several nodes those of the workers, too."""
    workload = observed.objects.get((_kind_of(cluster, component), cluster.child(component)))
    of = (component, *((Component.ENGINE_WORKER,) if component is Component.ENGINE else ()))
    wanted = [selector(cluster.name, each).items() for each in of]
    return workload, [
        pod for pod in observed.pods if any(each <= pod["metadata"].get("labels", {}).items() for each in wanted)
    ]


def _kind_of(cluster: AgentServingCluster, component: Component) -> str:
    return GROUP if component is Component.ENGINE and cluster.spans_nodes else WORKLOADS[component]


def is_group_settling(cluster: AgentServingCluster, observed: Observed) -> bool:
    """Whether engines on several nodes are not all ready yet: their LeaderWorkerSet is not watched."""
    if not cluster.spans_nodes:
        return False
    engines = _workload(cluster, observed, Component.ENGINE)
    return not engines.settled or engines.ready < engines.wanted


def are_pods_waiting(cluster: AgentServingCluster, observed: Observed) -> bool:
    """Whether pods are missing or have started nothing yet: what keeps them may be in Events only."""
    return any(are_waiting(*_parts_of(cluster, observed, component)) for component in WORKLOADS)


def _why_not(workload: Manifest | None, pods: Sequence[Manifest], warnings: Sequence[Manifest]) -> Trouble | None:
    trouble = trouble_of(workload, pods)
    if trouble is None:
        return warning_trouble(workload, pods, warnings)
    claim = claim_trouble(workload, pods, warnings) if trouble.reason is Reason.UNSCHEDULABLE else None
    return trouble if claim is None else Trouble(claim.reason, f"{trouble.message}; {claim.message}")


def _pods_ready(
    cluster: AgentServingCluster, component: Component, workload: _Workload, needed: int | None = None
) -> Finding:
    if not workload.exists:
        name = cluster.child(component)
        return Finding(
            ConditionStatus.FALSE, Reason.CREATING, f"{_kind_of(cluster, component)} {name} does not exist yet"
        )
    counted = f"{workload.ready} of {workload.wanted} pods ready"
    if workload.ready >= (workload.wanted if needed is None else needed):
        return Finding(ConditionStatus.TRUE, Reason.AVAILABLE, counted)
    if workload.trouble is not None:
        return Finding(ConditionStatus.FALSE, workload.trouble.reason, f"{counted}: {workload.trouble.message}")
    return Finding(ConditionStatus.FALSE, Reason.STARTING, counted)


def _engine_trouble(overview: Overview | None, engines: _Workload) -> Trouble | None:
    return None if overview is None else engine_trouble(overview.engines, engines.pods)


def _engines_ready(cluster: AgentServingCluster, engines: _Workload, trouble: Trouble | None) -> Finding:
    """The pods' own problems first: a container that crashes again and again explains why its engine is down."""
    if engines.exists and engines.wanted == 0:
        held = cluster.spec.engine.autoscaling is not None
        what = (
            "no program needs an engine: the next call waits for one"
            if held
            else "spec.engine.replicas is 0: calls are refused"
        )
        return Finding(ConditionStatus.TRUE, Reason.SCALED_TO_ZERO, what)
    pods = _pods_ready(cluster, Component.ENGINE, engines)
    if trouble is not None and pods.reason in (Reason.AVAILABLE, Reason.STARTING):
        return Finding(ConditionStatus.FALSE, trouble.reason, f"{pods.message}; {trouble.message}")
    if trouble is not None:
        return Finding(pods.status, pods.reason, f"{pods.message}; {trouble.message}")
    if pods.reason is Reason.STARTING:
        return Finding(pods.status, pods.reason, f"{pods.message}; loading a model takes minutes")
    return pods


def _store_ready(cluster: AgentServingCluster, observed: Observed, etcd: _Workload) -> Finding:
    kind, overview = cluster.spec.store.type, observed.overview
    if overview is not None and not overview.store_healthy:
        if any(words in overview.store_message for words in _NO_SPACE):
            quota = "spec.store.etcd.quotaMiB" if kind is StoreType.ETCD else "the quota of your etcd"
            message = (
                f"the store is full: {overview.store_message}. The control plane compacts and defragments it and "
                f"resumes by itself; if live data fill it, raise {quota}"
            )
            return Finding(ConditionStatus.FALSE, Reason.STORE_FULL, message)
        message = f"the control plane cannot write: {overview.store_message}"
        return Finding(ConditionStatus.FALSE, Reason.STORE_UNHEALTHY, message)
    if kind is StoreType.MEMORY:
        return Finding(ConditionStatus.TRUE, Reason.IN_MEMORY, "accounts are lost when the control plane restarts")
    if kind is StoreType.ETCD:
        # A majority is enough to write.
        return _pods_ready(cluster, Component.ETCD, etcd, etcd.wanted // 2 + 1)
    if overview is None:
        return Finding(ConditionStatus.UNKNOWN, Reason.NOT_REACHABLE, "the control plane has not answered yet")
    return Finding(ConditionStatus.TRUE, Reason.AVAILABLE, "the control plane can write to it")


def _ready(findings: Mapping[ConditionType, Finding], troubles: Sequence[Trouble]) -> Finding:
    for trouble in troubles:
        return Finding(ConditionStatus.FALSE, trouble.reason, trouble.message)
    for kind in ConditionType:
        finding = findings.get(kind)
        if finding is not None and finding.status is not ConditionStatus.TRUE:
            return Finding(ConditionStatus.FALSE, finding.reason, f"{kind}: {finding.message}")
    return Finding(ConditionStatus.TRUE, Reason.READY, "programs are served")


def _clients(cluster: AgentServingCluster) -> Finding:
    """Without keys everything works, so nothing else would say that there are none."""
    if keys_are_needed(cluster):
        return Finding(ConditionStatus.TRUE, Reason.KEYS_NEEDED, "clients need keys")
    open_to = "whoever reaches the gateway or a control plane is served, as any tenant"
    if cluster.spec.auth.clients is None and not cluster.spec.tls.on:
        why = "keys need TLS, and spec.tls.issuer is None: make a cluster with TLS, or say spec.auth.clients: None"
    elif cluster.spec.auth.clients is None:
        why = "this cluster is from before keys existed: give clients keys, then set spec.auth.clients to Keys"
    else:
        why = "spec.auth.clients is None"
    return Finding(ConditionStatus.FALSE, Reason.OPEN_TO_ALL, f"{open_to}: {why}")


def _entrances(cluster: AgentServingCluster, observed: Observed) -> Finding:
    addresses, troubles = entrances_of(cluster, observed.objects)
    if troubles:
        return Finding(ConditionStatus.FALSE, troubles[0].reason, "; ".join(each.message for each in troubles))
    if not addresses:
        return Finding(ConditionStatus.TRUE, Reason.NOT_ASKED_FOR, "calls come from inside the Kubernetes cluster only")
    return Finding(ConditionStatus.TRUE, Reason.AVAILABLE, ", ".join(addresses))


def _progressing(workloads: Mapping[Component, _Workload], observed: Observed) -> Finding:
    in_progress = [
        f"{component}: {each.updated} of {each.wanted} pods are updated, {each.replicas} exist"
        for component, each in workloads.items()
        if not each.settled
    ]
    if in_progress:
        return Finding(ConditionStatus.TRUE, Reason.ROLLING_OUT, "; ".join(in_progress))
    overview = observed.overview
    if overview is not None and overview.pending_engines:
        message = f"{overview.pending_engines} engines have not acknowledged policy {overview.policy_name}"
        return Finding(ConditionStatus.TRUE, Reason.POLICY_PENDING, message)
    return Finding(ConditionStatus.FALSE, Reason.SETTLED, "all pods are as the spec describes them")


def _degraded(of_workloads: Sequence[Trouble | None], of_engines: Trouble | None, observed: Observed) -> Finding:
    rejections = rejection_trouble(observed.overview.rejecting_engines) if observed.overview else None
    if of_engines is not None and of_engines.reason is Reason.ENGINE_LOADING:
        of_engines = None
    possible = [*observed.troubles, *of_workloads, of_engines, rejections, observed.expiring]
    troubles = [trouble for trouble in possible if trouble is not None]
    if not troubles:
        return Finding(ConditionStatus.FALSE, Reason.AS_EXPECTED, "nothing has failed")
    return Finding(ConditionStatus.TRUE, troubles[0].reason, "; ".join(trouble.message for trouble in troubles))


def _autoscaling(observed: Observed, previous: Mapping[str, Any], now: str) -> AutoscalingStatus | None:
    found = observed.autoscaling
    if found is None:
        return None
    before = previous.get("autoscaling") or {}
    same = before.get("desired") == found.desired
    return replace(found, last_scale_time=before.get("lastScaleTime", now) if same else now)


def _policy(observed: Observed, previous: Mapping[str, Any]) -> PolicyInForce | None:
    overview = observed.overview
    before = previous.get("policy") or {}
    if overview is None:
        # The last known policy is still in force as far as we know.
        return None if not before else PolicyInForce(
            name=before.get("name", ""), version=before.get("version", 0),
            observed_generation=before.get("observedGeneration", 0), pending_engines=before.get("pendingEngines", 0),
            chosen=before.get("chosen"),
        )  # fmt: skip
    in_force = overview.policy_generation if overview.policy_generation and not overview.pending_engines else 0
    return PolicyInForce(
        name=overview.policy_name,
        version=overview.policy_version,
        observed_generation=in_force or before.get("observedGeneration", 0),
        pending_engines=overview.pending_engines,
        chosen=overview.policy_chosen,
    )
