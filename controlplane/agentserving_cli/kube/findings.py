"""What `kubectl agentserving doctor` finds in a cluster's objects: one line a check, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentserving.v1 import admin_service_pb2, types_pb2

from agentserving_cli.kube.clusters import Object, conditions

_PARTS = ("ControlPlaneReady", "StoreReady", "EnginesReady", "GatewayReady")


@dataclass(frozen=True, slots=True)
class Finding:
    """`ok` False: something to do, which `told` says."""

    ok: bool
    what: str
    told: str


def of_operator(deployments: Sequence[Object]) -> Finding:
    """Whether somebody looks after clusters."""
    running = [each for each in deployments if each.get("status", {}).get("readyReplicas")]
    if running:
        where = ", ".join(sorted({str(each["metadata"]["namespace"]) for each in running}))
        return Finding(True, "operator", f"runs in namespace {where}")
    if deployments:
        there = deployments[0]["metadata"]
        return Finding(
            False,
            "operator",
            f"is not ready: kubectl -n {there['namespace']} describe deployment {there['name']} says why",
        )
    return Finding(False, "operator", "is not installed: helm install agentserving charts/agentserving -n agentserving")


def of_cluster(cluster: Object) -> Iterator[Finding]:
    """What the operator says of it."""
    seen = conditions(cluster)
    if not seen:
        yield Finding(False, "status", "is empty: no operator has looked at this object")
        return
    generation = cluster["metadata"].get("generation", 0)
    observed = cluster.get("status", {}).get("observedGeneration") or 0
    if observed < generation:
        yield Finding(False, "status", f"is of generation {observed}, the spec of {generation}: the operator is behind")
    for name in _PARTS:
        condition = seen.get(name)
        if condition is None:
            yield Finding(False, name, "is not told")
        else:
            yield Finding(condition["status"] == "True", name, _words(condition))
    degraded = seen.get("Degraded")
    if degraded is not None and degraded["status"] == "True":
        yield Finding(False, "Degraded", _words(degraded))


def _words(condition: Object) -> str:
    message = " ".join(str(condition.get("message", "")).split())
    return f"{condition['reason']}: {message}" if message else str(condition["reason"])


def of_pods(pods: Sequence[Object]) -> Iterator[Finding]:
    """Pods that restart; why they are not ready the conditions tell."""
    for pod in pods:
        status = pod.get("status", {})
        for one in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
            if one.get("restartCount"):
                ended = one.get("lastState", {}).get("terminated", {})
                how = f"{ended.get('reason', 'ended')}, exit code {ended.get('exitCode', '?')}"
                name = pod["metadata"]["name"]
                yield Finding(
                    bool(one.get("ready")),
                    f"pod {name}",
                    f"container {one['name']} restarted {one['restartCount']} times ({how}): "
                    f"kubectl logs {name} -c {one['name']} --previous",
                )


def of_control_plane(
    cluster: Object, overview: admin_service_pb2.GetOverviewResponse, policy: admin_service_pb2.GetPolicyResponse
) -> Iterator[Finding]:
    """What the control plane itself says, against the spec."""
    store = overview.store_message or "takes writes"
    yield Finding(overview.store_healthy, "store", store)
    serving = [engine for engine in overview.engines if engine.state == types_pb2.ENGINE_STATE_READY]
    wanted = cluster.get("spec", {}).get("engine", {}).get("replicas", len(serving))
    yield Finding(len(serving) >= wanted, "engines", f"{len(serving)} of {wanted} are attached and serve")
    for engine in overview.engines:
        if engine.load.hook_errors:
            yield Finding(
                False, f"engine {engine.engine_id}",
                f"its scheduler plugin failed {engine.load.hook_errors} times: its log says at what",
            )  # fmt: skip
    waits = ", ".join(policy.pending_engine_ids)
    told = f"{policy.policy.policy.name}, version {policy.policy.version}"
    yield Finding(
        not waits, "policy", f"{told}, not acknowledged by {waits}" if waits else f"{told}, in force everywhere"
    )
