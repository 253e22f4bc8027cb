"""Checks of `kubectl agentserving doctor` on a cluster's objects: one line each, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentserving.client.values import EngineState, Overview, PolicyVersion

from agentserving_cli.kube.clusters import Object, conditions

_PARTS = ("ControlPlaneReady", "StoreReady", "EnginesReady", "GatewayReady")


@dataclass(frozen=True, slots=True)
class Finding:
    """`ok` False: something is wrong with `what`; `message` says what to do."""

    ok: bool
    what: str
    message: str


def of_operator(deployments: Sequence[Object]) -> Finding:
    """Whether an operator runs."""
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
    """What the operator has written into the object's status."""
    seen = conditions(cluster)
    if not seen:
        yield Finding(False, "status", "is empty: no operator has reconciled this object")
        return
    generation = cluster["metadata"].get("generation", 0)
    observed = cluster.get("status", {}).get("observedGeneration") or 0
    if observed < generation:
        yield Finding(False, "status", f"is of generation {observed}, the spec of {generation}: the operator is behind")
    for name in _PARTS:
        condition = seen.get(name)
        if condition is None:
            yield Finding(False, name, "is missing from the status")
        else:
            yield Finding(condition["status"] == "True", name, _words(condition))
    in_force = seen.get("PolicyInForce")
    if in_force is not None:
        yield Finding(in_force["status"] == "True", "PolicyInForce", _words(in_force))
    clients = seen.get("ClientsAuthenticated")
    if clients is not None:
        # Someone has decided it if the spec says so.
        is_chosen = cluster.get("spec", {}).get("auth", {}).get("clients") == "None"
        yield Finding(clients["status"] == "True" or is_chosen, "ClientsAuthenticated", _words(clients))
    degraded = seen.get("Degraded")
    if degraded is not None and degraded["status"] == "True":
        yield Finding(False, "Degraded", _words(degraded))


def _words(condition: Object) -> str:
    message = " ".join(str(condition.get("message", "")).split())
    return f"{condition['reason']}: {message}" if message else str(condition["reason"])


def of_pods(pods: Sequence[Object]) -> Iterator[Finding]:
    """Pods that are not ready, each with the reason; and containers that were restarted."""
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        containers = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
        restarted = [one for one in containers if one.get("restartCount")]
        for one in restarted:
            ended = one.get("lastState", {}).get("terminated", {})
            how = f"{ended.get('reason', 'ended')}, exit code {ended.get('exitCode', '?')}"
            yield Finding(
                bool(one.get("ready")),
                f"pod {name}",
                f"container {one['name']} restarted {one['restartCount']} times ({how}): "
                f"kubectl logs {name} -c {one['name']} --previous",
            )
        if "deletionTimestamp" in pod["metadata"] or any(not one.get("ready") for one in restarted):
            continue
        why = _not_ready(status, containers)
        if why:
            yield Finding(False, f"pod {name}", f"{why}: kubectl describe pod {name}")


def _not_ready(status: Object, containers: Sequence[Object]) -> str:
    """Why a pod is not ready; empty when it is. The root cause first: no node, a container that waits, the rest."""
    seen = {condition["type"]: condition for condition in status.get("conditions", [])}
    if seen.get("Ready", {}).get("status") == "True":
        return ""
    scheduled = seen.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"has no node ({scheduled.get('message') or scheduled.get('reason', 'no reason given')})"
    for one in containers:
        waiting = one.get("state", {}).get("waiting", {})
        # The container waits for another one, which has its own reason.
        if waiting.get("reason", "PodInitializing") != "PodInitializing":
            details = f": {waiting['message']}" if waiting.get("message") else ""
            return f"container {one['name']} waits ({waiting['reason']}{details})"
    unready = seen.get("Ready", {})
    return f"is not ready ({unready.get('message') or status.get('reason') or status.get('phase', 'no status yet')})"


def of_control_plane(cluster: Object, overview: Overview, policy: PolicyVersion) -> Iterator[Finding]:
    """What the control plane says, compared with the spec."""
    yield Finding(overview.store_healthy, "store", overview.store_message or "takes writes")
    ready = [engine for engine in overview.engines if engine.state is EngineState.READY]
    wanted = cluster.get("spec", {}).get("engine", {}).get("replicas", len(ready))
    yield Finding(len(ready) >= wanted, "engines", f"{len(ready)} of {wanted} are ready")
    for engine in overview.engines:
        if engine.state is not EngineState.READY:
            state, reason = engine.state.name.lower(), engine.state_reason or "no reason given"
            # A drain is an administrator's decision.
            drained = engine.state is EngineState.DRAINING
            undrain = f": kubectl agentserving undrain {engine.engine_id} ends it" if drained else ""
            yield Finding(drained, f"engine {engine.engine_id}", f"is {state} ({reason}){undrain}")
        if engine.load.hook_errors:
            yield Finding(
                False, f"engine {engine.engine_id}",
                f"its scheduler plugin failed {engine.load.hook_errors} times: its log says where",
            )  # fmt: skip
    yield from _of_policy(cluster, policy)


def _of_policy(cluster: Object, version: PolicyVersion) -> Iterator[Finding]:
    pending = ", ".join(version.pending_engine_ids)
    name = f"{version.policy.name}, version {version.version}"
    message = f"{name}, not acknowledged by {pending}" if pending else f"{name}, in force everywhere"
    yield Finding(not pending, "policy", message)
    wanted = cluster.get("spec", {}).get("scheduling", {}).get("policy", "")
    if wanted and wanted != version.policy.name:
        yield Finding(
            False, "policy of the spec", f"is {wanted}, in force is {version.policy.name}: the operator sets it within "
            "a minute; if it does not, its log and the object's conditions say why",
        )  # fmt: skip
