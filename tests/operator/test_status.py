"""The status says what is wrong, and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from agentserving_operator.manifests import AgentServingCluster, Component, Manifest, desired
from agentserving_operator.manifests.common import labels
from agentserving_operator.observe import status as conditions
from agentserving_operator.observe.overview import EngineState, EngineView, Overview
from agentserving_operator.observe.reasons import ConditionType, Reason, Trouble
from agentserving_operator.observe.status import WORKLOADS, Observed, invalid_status, status_of
from agentserving_operator.spec.auth import ClientAuth
from agentserving_operator.spec.parsing import parse
from agentserving_operator.spec.status import ClusterStatus
from support.operator_objects import make_cluster

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
FACTS = {"programs": 7, "policy_name": "atlas", "policy_version": 4, "policy_generation": 3, "pending_engines": 0}
OVERVIEW = Overview(**FACTS, store_healthy=True, store_message="")  # type: ignore[arg-type]
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def running(cluster: AgentServingCluster) -> dict[tuple[str, str], Manifest]:
    """All its objects, with every pod ready."""
    found = {}
    for each in desired(cluster):
        if each["kind"] in (*WORKLOADS.values(), "LeaderWorkerSet"):
            wanted = each["spec"]["replicas"]
            each["metadata"]["generation"] = 1
            counts = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas"), wanted)
            each["status"] = {"observedGeneration": 1, **counts}
        found[each["kind"], each["metadata"]["name"]] = each
    return found


def pod(component: Component, index: int = 0, **status: Any) -> Manifest:
    return {"metadata": {"name": f"demo-{component}-{index}", "labels": labels("demo", component)}, "status": status}


def by_type(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in status["conditions"]}


def short(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {kind: (each["status"], each["reason"]) for kind, each in by_type(status).items()}


def observe(cluster: AgentServingCluster, previous: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    observed = replace(Observed(objects=running(cluster), pods=[], overview=OVERVIEW), **changes)
    return status_of(cluster, observed, previous or {}, NOW)


def test_what_auto_has_chosen_is_in_the_status_even_while_no_control_plane_answers() -> None:
    cluster = make_cluster()
    first = observe(cluster, {}, overview=replace(OVERVIEW, policy_name="auto", policy_chosen="program-fcfs"))
    assert (first["policy"]["name"], first["policy"]["chosen"]) == ("auto", "program-fcfs")
    assert observe(cluster, first, overview=None)["policy"]["chosen"] == "program-fcfs"


def test_a_cluster_whose_pods_are_ready_is_ready() -> None:
    status = observe(make_cluster(engine={"replicas": 2}))
    assert short(status) == {
        "Ready": ("True", "Ready"), "ControlPlaneReady": ("True", "Available"), "StoreReady": ("True", "Available"),
        "EnginesReady": ("True", "Available"), "GatewayReady": ("True", "Available"),
        "Progressing": ("False", "Settled"), "Degraded": ("False", "AsExpected"),
        "ClientsAuthenticated": ("True", "KeysNeeded"), "EntrancesReady": ("True", "NotAskedFor"),
        "PolicyInForce": ("True", "InForce"),
    }  # fmt: skip
    assert status["observedGeneration"] == 3
    assert {each["observedGeneration"] for each in status["conditions"]} == {3}
    assert status["engines"] == {"replicas": 2, "ready": 2, "updated": 2, "summary": "2/2"}
    assert (status["url"], status["programs"]) == ("http://demo-gateway.ns.svc/v1", 7)
    assert status["policy"] == {"name": "atlas", "version": 4, "observedGeneration": 3, "pendingEngines": 0}
    assert "component=engine" in status["selector"]


def test_a_part_of_the_policy_that_an_engine_leaves_out_is_no_reason_not_to_be_ready() -> None:
    engine = EngineView("demo-engine-0", EngineState.READY, "", "kv_layout")
    found = short(observe(make_cluster(), overview=replace(OVERVIEW, retains=True, engines=(engine,))))
    assert (found["Ready"][0], found["PolicyInForce"]) == ("True", ("False", "RetentionOff"))


def test_the_first_visit_sets_all_conditions() -> None:
    status = status_of(make_cluster(), Observed(objects={}, pods=[]), {}, NOW)
    assert set(short(status)) == {kind.value for kind in ConditionType}
    assert short(status)["Ready"] == ("False", "Creating")
    assert short(status)["Progressing"] == ("True", "RollingOut")
    assert status["engines"]["summary"] == "0/0"
    parse(ClusterStatus, status, "status")


def test_a_status_keeps_to_its_schema() -> None:
    parse(ClusterStatus, observe(make_cluster()), "status")


def short_of_one(cluster: AgentServingCluster, component: Component) -> dict[tuple[str, str], Manifest]:
    """All its objects, one pod of a component not ready."""
    objects = running(cluster)
    objects[WORKLOADS[component], cluster.child(component)]["status"]["readyReplicas"] -= 1
    return objects


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_GPU}]},
            Reason.UNSCHEDULABLE,
            NO_GPU,
        ),
        (
            {"containerStatuses": [{"name": "engine", "state": {"waiting": {
                "reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}}]},
            Reason.IMAGE_PULL_FAILED,
            "check the image's name",
        ),
        (
            {"containerStatuses": [{"name": "engine", "state": {"waiting": {
                "reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}}}]},
            Reason.CONTAINER_CONFIG_INVALID,
            'secret "hf" not found; create the object it refers to',
        ),
        (
            {"initContainerStatuses": [{"name": "sidecar", "restartCount": 4, "state": {"waiting": {
                "reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {
                "exitCode": 1, "reason": "Error", "message": "Traceback\nValueError: no such model\n"}}}]},
            Reason.CRASHING,
            "Error with exit code 1, restarted 4 times: Traceback ValueError: no such model; see its log",
        ),
    ],
)  # fmt: skip
def test_pods_that_cannot_run_give_the_reason(status: dict[str, Any], reason: Reason, words: str) -> None:
    cluster = make_cluster(engine={"replicas": 2})
    made = observe(cluster, objects=short_of_one(cluster, Component.ENGINE), pods=[pod(Component.ENGINE, 1, **status)])
    found = by_type(made)
    for kind, wanted in (("Ready", "False"), ("EnginesReady", "False"), ("Degraded", "True")):
        assert (found[kind]["status"], found[kind]["reason"]) == (wanted, reason)
        assert words in found[kind]["message"]
        assert "demo-engine-1" in found[kind]["message"]
    assert "1 of 2 pods ready" in found["Ready"]["message"]


def test_loading_a_model_is_not_a_problem() -> None:
    cluster = make_cluster()
    status = observe(cluster, objects=short_of_one(cluster, Component.ENGINE), pods=[pod(Component.ENGINE)])
    assert short(status)["EnginesReady"] == ("False", "Starting")
    assert short(status)["Degraded"] == ("False", "AsExpected")


def test_a_pod_that_is_being_deleted_is_not_a_problem() -> None:
    gone = pod(Component.ENGINE, conditions=[{"type": "PodScheduled", "status": "False", "message": NO_GPU}])
    gone["metadata"]["deletionTimestamp"] = NOW
    assert short(observe(make_cluster(), pods=[gone]))["Degraded"] == ("False", "AsExpected")


def test_a_quota_is_named() -> None:
    cluster = make_cluster()
    objects = short_of_one(cluster, Component.GATEWAY)
    found = 'pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5'
    objects["Deployment", "demo-gateway"]["status"]["conditions"] = [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": found}
    ]
    status = observe(cluster, objects=objects)
    assert short(status)["GatewayReady"] == ("False", "QuotaExceeded")
    assert found in by_type(status)["Ready"]["message"]


@pytest.mark.parametrize(("members", "ready", "store"), [(1, 0, "False"), (3, 2, "True"), (3, 1, "False")])
def test_a_store_with_a_majority_is_ready(members: int, ready: int, store: str) -> None:
    cluster = make_cluster(store={"etcd": {"members": members}})
    objects = running(cluster)
    objects["StatefulSet", "demo-etcd"]["status"]["readyReplicas"] = ready
    assert short(observe(cluster, objects=objects))["StoreReady"][0] == store


@pytest.mark.parametrize(
    ("store", "overview", "found"),
    [
        ({"type": "Memory"}, OVERVIEW, ("True", "InMemory")),
        ({"type": "ExternalEtcd", "external": {"endpoints": ["a:1"]}}, OVERVIEW, ("True", "Available")),
        ({"type": "ExternalEtcd", "external": {"endpoints": ["a:1"]}}, None, ("Unknown", "NotReachable")),
        ({}, replace(OVERVIEW, store_healthy=False, store_message="no leader"), ("False", "StoreUnhealthy")),
        (
            {},
            replace(OVERVIEW, store_healthy=False, store_message="etcdserver: mvcc: database space exceeded"),
            ("False", "StoreFull"),
        ),
    ],
)
def test_the_control_plane_reports_its_store(
    store: dict[str, Any], overview: Overview | None, found: tuple[str, str]
) -> None:
    assert short(observe(make_cluster(store=store), overview=overview))["StoreReady"] == found


def test_a_cluster_scaled_to_zero_is_ready() -> None:
    assert short(observe(make_cluster(engine={"replicas": 0})))["EnginesReady"] == ("True", "ScaledToZero")


def test_a_refused_object_is_reported() -> None:
    trouble = Trouble(Reason.APPLY_REFUSED, "StatefulSet demo-engine: spec: Forbidden: updates to ...")
    found = by_type(observe(make_cluster(), troubles=[trouble]))
    assert (found["Ready"]["reason"], found["Ready"]["message"]) == (trouble.reason, trouble.message)
    assert found["Degraded"]["status"] == "True"


def test_the_transition_time_changes_with_the_status_not_with_the_message() -> None:
    cluster = make_cluster(engine={"replicas": 2})
    first = observe(cluster)
    objects = short_of_one(cluster, Component.ENGINE)
    second = status_of(cluster, Observed(objects=objects, pods=[], overview=OVERVIEW), first, LATER)
    times = {kind: each["lastTransitionTime"] for kind, each in by_type(second).items()}
    assert times["EnginesReady"] == times["Ready"] == LATER
    assert times["GatewayReady"] == times["Degraded"] == NOW
    assert status_of(cluster, Observed(objects=objects, pods=[], overview=OVERVIEW), second, "x") == second


def test_a_policy_is_in_force_when_every_engine_has_it() -> None:
    cluster = make_cluster()
    first = observe(cluster, overview=replace(OVERVIEW, policy_generation=2))
    pending = replace(OVERVIEW, pending_engines=1, policy_name="plas")
    second = observe(cluster, first, overview=pending)
    assert second["policy"] == {"name": "plas", "version": 4, "observedGeneration": 2, "pendingEngines": 1}
    assert short(second)["Progressing"] == ("True", "PolicyPending")
    third = observe(cluster, second, overview=replace(pending, pending_engines=0))
    assert third["policy"]["observedGeneration"] == 3


def test_the_last_answer_stays_while_the_control_plane_is_away() -> None:
    cluster = make_cluster()
    first = observe(cluster)
    second = observe(cluster, first, overview=None)
    assert (second["policy"], second["programs"]) == (first["policy"], 7)


def test_a_change_that_its_controller_has_not_seen_yet_is_in_progress() -> None:
    cluster = make_cluster()
    objects = running(cluster)
    objects["StatefulSet", "demo-engine"]["metadata"]["generation"] = 2
    assert short(observe(cluster, objects=objects))["Progressing"] == ("True", "RollingOut")


def test_an_invalid_spec_keeps_the_last_status_and_names_the_error() -> None:
    first = observe(make_cluster())
    second = invalid_status(Trouble(Reason.INVALID_SPEC, "spec.engine.replicas: must be ..."), 4, first, LATER)
    assert short(second)["Ready"] == ("False", "InvalidSpec")
    assert short(second)["EnginesReady"] == ("Unknown", "NotLookedAt")
    assert second["engines"] == first["engines"]
    assert second["observedGeneration"] == 4
    parse(ClusterStatus, second, "status")


def test_a_long_message_is_cut_to_the_schemas_limit() -> None:
    made = observe(make_cluster(), troubles=[Trouble(Reason.APPLY_REFUSED, "x" * 9000)])
    parse(ClusterStatus, made, "status")


def engine(index: int, state: EngineState, reason: str = "") -> EngineView:
    return EngineView(f"demo-engine-{index}", state, reason)


def observe_engines(*engines: EngineView, **changes: Any) -> dict[str, Any]:
    """Two engines whose pods are ready."""
    pods = [pod(Component.ENGINE, index) for index in range(2)]
    overview = replace(OVERVIEW, engines=engines)
    return observe(make_cluster(engine={"replicas": 2}), **{"pods": pods, "overview": overview, **changes})


@pytest.mark.parametrize(
    ("state", "reason", "is_degraded"),
    [
        (EngineState.DOWN, "EngineDown", True), (EngineState.STUCK, "EngineStuck", True),
        (EngineState.FAILING, "EngineFailing", True), (EngineState.LOST, "EngineLost", True),
        (EngineState.LOADING, "EngineLoading", False),
    ],
)  # fmt: skip
def test_an_engine_that_takes_no_calls_behind_a_ready_pod_is_named_with_its_state(
    state: EngineState, reason: str, is_degraded: bool
) -> None:
    status = observe_engines(engine(0, EngineState.READY), engine(1, state, "its words"))
    assert short(status)["EnginesReady"] == ("False", reason)
    assert short(status)["Ready"] == ("False", reason)
    assert f"engine demo-engine-1 is {state}: its words" in by_type(status)["Ready"]["message"]
    assert "demo-engine-0" not in by_type(status)["Ready"]["message"]
    assert short(status)["Degraded"] == (("True", reason) if is_degraded else ("False", "AsExpected"))
    without_words = observe_engines(engine(1, state))
    assert by_type(without_words)["EnginesReady"]["message"].partition(f"{state}: ")[2]


def test_the_worst_state_gives_the_reason_and_all_engines_are_named() -> None:
    status = observe_engines(engine(0, EngineState.STUCK, "a"), engine(1, EngineState.DOWN, "b"))
    assert by_type(status)["EnginesReady"]["reason"] == "EngineDown"
    assert "demo-engine-1 is DOWN: b; engine demo-engine-0 is STUCK: a" in by_type(status)["EnginesReady"]["message"]


def test_a_draining_engine_and_one_without_a_pod_are_no_problem() -> None:
    status = observe_engines(engine(0, EngineState.DRAINING), engine(7, EngineState.LOST))
    assert short(status)["EnginesReady"] == ("True", "Available")
    leaving = pod(Component.ENGINE, 1)
    leaving["metadata"]["deletionTimestamp"] = NOW
    status = observe_engines(engine(1, EngineState.DOWN), pods=[leaving])
    assert short(status)["EnginesReady"] == ("True", "Available")


def test_a_container_that_kubelet_keeps_restarting_explains_why_its_engine_is_down() -> None:
    cluster = make_cluster()
    waiting = {"name": "engine", "restartCount": 9, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    status = observe(
        cluster, objects=short_of_one(cluster, Component.ENGINE),
        pods=[pod(Component.ENGINE, containerStatuses=[waiting])],
        overview=replace(OVERVIEW, engines=(engine(0, EngineState.DOWN, "no process"),)),
    )  # fmt: skip
    assert short(status)["EnginesReady"] == ("False", "Crashing")
    assert "restarted 9 times" in by_type(status)["EnginesReady"]["message"]
    assert "engine demo-engine-0 is DOWN: no process" in by_type(status)["EnginesReady"]["message"]


def test_an_engine_that_is_stuck_behind_a_pod_that_is_not_ready_is_named() -> None:
    cluster = make_cluster()
    status = observe(
        cluster, objects=short_of_one(cluster, Component.ENGINE), pods=[pod(Component.ENGINE)],
        overview=replace(OVERVIEW, engines=(engine(0, EngineState.STUCK),)),
    )  # fmt: skip
    assert short(status)["EnginesReady"] == ("False", "EngineStuck")


def test_engines_that_reject_tickets_degrade_a_cluster_that_serves() -> None:
    status = observe(make_cluster(), overview=replace(OVERVIEW, rejecting_engines=("demo-engine-0",)))
    assert short(status)["Ready"] == ("True", "Ready")
    assert short(status)["Degraded"] == ("True", "TicketsRejected")
    assert "check NTP" in by_type(status)["Degraded"]["message"]


@pytest.mark.parametrize(
    ("spec", "auth", "status", "says"),
    [
        ({}, ClientAuth.KEYS, "True", "clients need keys"),
        ({"tls": {"issuer": "None"}}, ClientAuth.NONE, "False", "keys need TLS, and spec.tls.issuer is None"),
        ({}, ClientAuth.NONE, "False", "from before keys existed"),
        ({"auth": {"clients": "None"}}, ClientAuth.NONE, "False", "spec.auth.clients is None"),
    ],
)
def test_a_cluster_without_keys_says_so_and_is_ready(
    spec: dict[str, Any], auth: ClientAuth, status: str, says: str
) -> None:
    cluster = replace(make_cluster(**spec), client_auth=auth)
    found = by_type(observe(cluster))
    assert found["ClientsAuthenticated"]["status"] == status
    assert says in found["ClientsAuthenticated"]["message"]
    assert found["Ready"]["status"] == "True"


def groups(**status: Any) -> tuple[AgentServingCluster, dict[tuple[str, str], Manifest]]:
    """Two engines on two nodes each; `status` of their LeaderWorkerSet."""
    cluster = make_cluster(engine={"nodes": 2, "replicas": 2})
    objects = running(cluster)
    objects["LeaderWorkerSet", "demo-engine"]["status"] |= status
    return cluster, objects


def test_groups_of_pods_are_counted_as_engines() -> None:
    cluster, objects = groups()
    found = observe(cluster, objects=objects)
    assert short(found)["EnginesReady"] == ("True", "Available")
    assert (found["engines"]["summary"], found["selector"].rpartition("=")[2]) == ("2/2", "engine")
    assert not conditions.is_group_settling(cluster, Observed(objects=objects, pods=[]))


@pytest.mark.parametrize("status", [{"readyReplicas": 1}, {"updatedReplicas": 1}, {"observedGeneration": 0}])
def test_a_group_that_is_not_ready_is_looked_at_again(status: dict[str, Any]) -> None:
    cluster, objects = groups(**status)
    assert conditions.is_group_settling(cluster, Observed(objects=objects, pods=[]))
    assert not conditions.is_group_settling(make_cluster(), Observed(objects={}, pods=[]))


def test_a_group_whose_controller_does_not_say_what_it_has_seen_settles_too() -> None:
    cluster, objects = groups()
    del objects["LeaderWorkerSet", "demo-engine"]["status"]["observedGeneration"]
    assert short(observe(cluster, objects=objects))["Progressing"] == ("False", "Settled")


def test_a_worker_that_has_no_node_explains_why_its_engine_is_not_ready() -> None:
    cluster, objects = groups(readyReplicas=1)
    no_node = {"type": "PodScheduled", "status": "False", "message": NO_GPU}
    worker = pod(Component.ENGINE_WORKER, 1, conditions=[no_node])
    found = by_type(observe(cluster, objects=objects, pods=[worker]))["EnginesReady"]
    assert (found["reason"], NO_GPU in found["message"]) == ("Unschedulable", True)
    assert "demo-engine-worker-1" in found["message"]


def test_a_group_waits_while_it_lacks_any_of_its_pods() -> None:
    cluster, objects = groups(readyReplicas=1)
    started = {"containerStatuses": [{"name": "engine", "state": {"running": {}}}]}
    of = (Component.ENGINE, Component.ENGINE_WORKER)
    pods = [pod(component, index, **started) for component in of for index in range(2)]
    assert not conditions.are_pods_waiting(cluster, Observed(objects=objects, pods=pods))
    assert conditions.are_pods_waiting(cluster, Observed(objects=objects, pods=pods[:3]))
