"""The status says what is the matter in words that help."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from agentserving_operator.manifests import Cluster, Component, Manifest, desired
from agentserving_operator.manifests.common import labels
from agentserving_operator.observe.reasons import ConditionType, Reason, Trouble
from agentserving_operator.observe.status import WORKLOADS, Observed, Overview, invalid_status, status_of
from agentserving_operator.spec.parsing import parse
from agentserving_operator.spec.status import ClusterStatus
from support.operator_objects import make_cluster

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
OVERVIEW = Overview(
    programs=7, policy_name="atlas", policy_version=4, policy_generation=3, pending_engines=0, store_healthy=True,
    store_message="",
)  # fmt: skip
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def running(cluster: Cluster) -> dict[tuple[str, str], Manifest]:
    """All its objects, with every pod ready."""
    found = {}
    for each in desired(cluster):
        if each["kind"] in WORKLOADS.values():
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


def observe(cluster: Cluster, previous: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    observed = replace(Observed(objects=running(cluster), pods=[], overview=OVERVIEW), **changes)
    return status_of(cluster, observed, previous or {}, NOW)


def test_a_cluster_whose_pods_are_ready_is_ready() -> None:
    status = observe(make_cluster(engine={"replicas": 2}))
    assert short(status) == {
        "Ready": ("True", "Ready"), "ControlPlaneReady": ("True", "Available"), "StoreReady": ("True", "Available"),
        "EnginesReady": ("True", "Available"), "GatewayReady": ("True", "Available"),
        "Progressing": ("False", "Settled"), "Degraded": ("False", "AsExpected"),
    }  # fmt: skip
    assert status["observedGeneration"] == 3
    assert {each["observedGeneration"] for each in status["conditions"]} == {3}
    assert status["engines"] == {"replicas": 2, "ready": 2, "updated": 2, "summary": "2/2"}
    assert (status["url"], status["programs"]) == ("http://demo-gateway.ns.svc/v1", 7)
    assert status["policy"] == {"name": "atlas", "version": 4, "observedGeneration": 3, "pendingEngines": 0}
    assert "component=engine" in status["selector"]


def test_all_conditions_are_there_on_the_first_visit() -> None:
    status = status_of(make_cluster(), Observed(objects={}, pods=[]), {}, NOW)
    assert set(short(status)) == {kind.value for kind in ConditionType}
    assert short(status)["Ready"] == ("False", "Creating")
    assert short(status)["Progressing"] == ("True", "RollingOut")
    assert status["engines"]["summary"] == "0/0"
    parse(ClusterStatus, status, "status")


def test_a_status_is_one_that_the_schema_takes() -> None:
    parse(ClusterStatus, observe(make_cluster()), "status")


def short_of_one(cluster: Cluster, component: Component) -> dict[tuple[str, str], Manifest]:
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
            'secret "hf" not found; create what it refers to',
        ),
        (
            {"initContainerStatuses": [{"name": "sidecar", "restartCount": 4, "state": {"waiting": {
                "reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}]},
            Reason.CRASHING,
            "container sidecar: Error with exit code 1, restarted 4 times; see its log",
        ),
    ],
)  # fmt: skip
def test_pods_that_cannot_run_say_why(status: dict[str, Any], reason: Reason, words: str) -> None:
    cluster = make_cluster(engine={"replicas": 2})
    made = observe(cluster, objects=short_of_one(cluster, Component.ENGINE), pods=[pod(Component.ENGINE, 1, **status)])
    told = by_type(made)
    for kind, wanted in (("Ready", "False"), ("EnginesReady", "False"), ("Degraded", "True")):
        assert (told[kind]["status"], told[kind]["reason"]) == (wanted, reason)
        assert words in told[kind]["message"]
        assert "demo-engine-1" in told[kind]["message"]
    assert "1 of 2 pods ready" in told["Ready"]["message"]


def test_a_loading_model_is_no_trouble() -> None:
    cluster = make_cluster()
    status = observe(cluster, objects=short_of_one(cluster, Component.ENGINE), pods=[pod(Component.ENGINE)])
    assert short(status)["EnginesReady"] == ("False", "Starting")
    assert short(status)["Degraded"] == ("False", "AsExpected")


def test_trouble_of_a_pod_that_is_going_is_none() -> None:
    gone = pod(Component.ENGINE, conditions=[{"type": "PodScheduled", "status": "False", "message": NO_GPU}])
    gone["metadata"]["deletionTimestamp"] = NOW
    assert short(observe(make_cluster(), pods=[gone]))["Degraded"] == ("False", "AsExpected")


def test_a_quota_is_named() -> None:
    cluster = make_cluster()
    objects = short_of_one(cluster, Component.GATEWAY)
    told = 'pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5'
    objects["Deployment", "demo-gateway"]["status"]["conditions"] = [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": told}
    ]
    status = observe(cluster, objects=objects)
    assert short(status)["GatewayReady"] == ("False", "QuotaExceeded")
    assert told in by_type(status)["Ready"]["message"]


@pytest.mark.parametrize(("members", "ready", "store"), [(1, 0, "False"), (3, 2, "True"), (3, 1, "False")])
def test_a_store_with_a_majority_is_ready(members: int, ready: int, store: str) -> None:
    cluster = make_cluster(store={"etcd": {"members": members}})
    objects = running(cluster)
    objects["StatefulSet", "demo-etcd"]["status"]["readyReplicas"] = ready
    assert short(observe(cluster, objects=objects))["StoreReady"][0] == store


@pytest.mark.parametrize(
    ("store", "overview", "told"),
    [
        ({"type": "Memory"}, OVERVIEW, ("True", "InMemory")),
        ({"type": "ExternalEtcd", "external": {"endpoints": ["a:1"]}}, OVERVIEW, ("True", "Available")),
        ({"type": "ExternalEtcd", "external": {"endpoints": ["a:1"]}}, None, ("Unknown", "NotReachable")),
        ({}, replace(OVERVIEW, store_healthy=False, store_message="no leader"), ("False", "StoreUnhealthy")),
    ],
)
def test_the_control_plane_knows_about_its_store(
    store: dict[str, Any], overview: Overview | None, told: tuple[str, str]
) -> None:
    assert short(observe(make_cluster(store=store), overview=overview))["StoreReady"] == told


def test_no_engines_wanted_is_a_state_to_be_ready_in() -> None:
    assert short(observe(make_cluster(engine={"replicas": 0})))["EnginesReady"] == ("True", "ScaledToZero")


def test_what_the_api_server_refused_is_told() -> None:
    trouble = Trouble(Reason.APPLY_REFUSED, "StatefulSet demo-engine: spec: Forbidden: updates to ...")
    told = by_type(observe(make_cluster(), troubles=[trouble]))
    assert (told["Ready"]["reason"], told["Ready"]["message"]) == (trouble.reason, trouble.message)
    assert told["Degraded"]["status"] == "True"


def test_the_time_changes_with_the_status_and_not_with_the_words() -> None:
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


def test_what_the_control_plane_said_last_stays_while_it_is_away() -> None:
    cluster = make_cluster()
    first = observe(cluster)
    second = observe(cluster, first, overview=None)
    assert (second["policy"], second["programs"]) == (first["policy"], 7)


def test_a_change_that_nobody_has_seen_yet_is_in_progress() -> None:
    cluster = make_cluster()
    objects = running(cluster)
    objects["StatefulSet", "demo-engine"]["metadata"]["generation"] = 2
    assert short(observe(cluster, objects=objects))["Progressing"] == ("True", "RollingOut")


def test_an_invalid_spec_keeps_what_was_known_and_says_what_is_wrong() -> None:
    first = observe(make_cluster())
    second = invalid_status(Trouble(Reason.INVALID_SPEC, "spec.engine.replicas: must be ..."), 4, first, LATER)
    assert short(second)["Ready"] == ("False", "InvalidSpec")
    assert short(second)["EnginesReady"] == ("Unknown", "NotLookedAt")
    assert second["engines"] == first["engines"]
    assert second["observedGeneration"] == 4
    parse(ClusterStatus, second, "status")


def test_a_long_story_is_cut_to_what_the_schema_takes() -> None:
    made = observe(make_cluster(), troubles=[Trouble(Reason.APPLY_REFUSED, "x" * 9000)])
    parse(ClusterStatus, made, "status")
