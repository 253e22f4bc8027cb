"""What holds for every object of a cluster."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from agentserving_operator.manifests import HASH_ANNOTATION, AgentServingCluster, Component, Images, desired
from agentserving_operator.manifests.common import USER, resources_of, selector
from agentserving_operator.spec.parsing import parse
from agentserving_operator.spec.parts import Resources
from support.operator_objects import IMAGES, make_cluster, pod_spec

CLUSTERS = {
    "a100": make_cluster(),
    "simulator": make_cluster(engine={"type": "Simulator"}, store={"type": "Memory"}),
    "large": make_cluster(
        engine={"replicas": 8, "accelerator": {"count": 4}, "kvOffloadGiB": 64},
        gateway={"replicas": 3},
        store={"type": "Etcd", "etcd": {"members": 3}},
    ),
    "batches": make_cluster(batches={"enabled": True}, gateway={"tls": {"secretName": "front"}}),
    "external": make_cluster(
        store={"type": "ExternalEtcd", "external": {"endpoints": ["a:2379"], "tlsSecretName": "t"}}
    ),
}
every = pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)


@every
def test_every_object_is_owned_by_its_cluster(cluster: AgentServingCluster) -> None:
    for each in desired(cluster):
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("AgentServingCluster", cluster.uid, True)
        assert each["metadata"]["namespace"] == "ns"


@every
def test_names_are_unique(cluster: AgentServingCluster) -> None:
    names = Counter((each["kind"], each["metadata"]["name"]) for each in desired(cluster))
    assert set(names.values()) == {1}


@every
def test_every_pod_has_the_labels_that_select_it_and_no_token(cluster: AgentServingCluster) -> None:
    for each in desired(cluster):
        if each["kind"] not in ("Deployment", "StatefulSet"):
            continue
        wanted = each["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= each["spec"]["template"]["metadata"]["labels"].items()
        assert pod_spec(each)["automountServiceAccountToken"] is False
        assert pod_spec(each)["enableServiceLinks"] is False


@every
def test_mounts_and_volumes_match(cluster: AgentServingCluster) -> None:
    for each in desired(cluster):
        if each["kind"] not in ("Deployment", "StatefulSet"):
            continue
        spec = pod_spec(each)
        claims = [claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])]
        there = {volume["name"] for volume in spec.get("volumes", [])} | set(claims)
        containers = [*spec["containers"], *spec.get("initContainers", [])]
        assert {mount["name"] for one in containers for mount in one["volumeMounts"]} == there


@every
def test_every_container_is_restricted_and_writes_to_volumes_only(cluster: AgentServingCluster) -> None:
    for each in desired(cluster):
        if each["kind"] not in ("Deployment", "StatefulSet"):
            continue
        spec = pod_spec(each)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in [*spec["containers"], *spec.get("initContainers", [])]:
            security = {**spec["securityContext"], **one["securityContext"]}
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["allowPrivilegeEscalation"] is False
            assert (security["runAsNonRoot"], security["runAsUser"]) == (True, USER)
            assert security["readOnlyRootFilesystem"] is True


def test_an_external_store_and_memory_have_no_objects() -> None:
    for name in ("simulator", "external"):
        assert not [each for each in desired(CLUSTERS[name]) if "etcd" in each["metadata"]["name"]]


def test_the_hash_changes_with_the_manifest() -> None:
    def hashes(cluster: AgentServingCluster) -> dict[tuple[str, str], str]:
        return {
            (each["kind"], each["metadata"]["name"]): each["metadata"]["annotations"][HASH_ANNOTATION]
            for each in desired(cluster)
        }

    one, other = hashes(make_cluster()), hashes(make_cluster(engine={"replicas": 2}))
    assert one == hashes(make_cluster())
    assert {key for key in one if one[key] != other[key]} == {("StatefulSet", "demo-engine")}


def test_a_change_of_policy_restarts_nothing() -> None:
    assert desired(make_cluster()) == desired(make_cluster(scheduling={"policy": "fcfs", "balancer": "RoundRobin"}))


def test_pull_secrets_reach_all_pods() -> None:
    images = Images(agentserving="a", vllm="b", etcd="c", pull_secrets=("pull",))
    workloads = [each for each in desired(make_cluster(images)) if each["kind"] in ("Deployment", "StatefulSet")]
    assert len(workloads) == 4
    assert all(pod_spec(each)["imagePullSecrets"] == [{"name": "pull"}] for each in workloads)
    assert "imagePullSecrets" not in pod_spec(desired(make_cluster(IMAGES))[-1])


def test_labels_distinguish_components() -> None:
    assert len({tuple(selector("demo", part).items()) for part in Component}) == len(Component)


@every
def test_no_container_is_killed_while_it_starts_slowly(cluster: AgentServingCluster) -> None:
    for each in desired(cluster):
        if each["kind"] not in ("Deployment", "StatefulSet"):
            continue
        spec = pod_spec(each)
        for one in (*spec["containers"], *spec.get("initContainers", [])):
            if "livenessProbe" in one:
                probe = one["startupProbe"]
                assert probe["periodSeconds"] * probe["failureThreshold"] >= 120, one["name"]


def test_a_quota_on_limits_admits_every_pod_when_the_user_gives_limits() -> None:
    both = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": 1, "memory": "1Gi"}}
    for members in (1, 3):
        cluster = make_cluster(
            engine={"resources": both, "sidecarResources": both}, controlPlane={"resources": both},
            gateway={"resources": both}, store={"etcd": {"members": members, "resources": both}},
        )  # fmt: skip
        for each in desired(cluster):
            if each["kind"] in ("Deployment", "StatefulSet"):
                for one in [*pod_spec(each).get("initContainers", []), *pod_spec(each)["containers"]]:
                    assert {"cpu", "memory"} <= one["resources"]["limits"].keys(), one["name"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "4", "memory": "1Gi"}}),
        ({"limits": {"memory": "128Mi"}}, {"requests": {"cpu": "100m"}, "limits": {"memory": "128Mi"}}),
        ({"requests": {"memory": "2Gi"}}, {"requests": {"memory": "2Gi"}, "limits": {"cpu": "4"}}),
    ],
    ids=["defaults", "a limit below the default request", "a request above the default limit"],
)
def test_default_resources_never_contradict_the_users(given: dict[str, Any], expected: Any) -> None:
    defaults = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "4", "memory": "1Gi"}}
    assert resources_of(parse(Resources, given), **defaults) == expected
