"""Engine pods: where they run, what they keep, how they leave."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.spec.accelerator import A100_PRODUCTS
from support.operator_objects import make_cluster, only_container, pod_spec


def volumes(**spec: Any) -> dict[str, Any]:
    return {volume["name"]: volume for volume in pod_spec(engine_statefulset(make_cluster(**spec)))["volumes"]}


def test_engines_run_on_a100_by_default() -> None:
    spec = pod_spec(engine_statefulset(make_cluster()))
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "nvidia.com/gpu.product", "operator": "In", "values": list(A100_PRODUCTS)}
    ]
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_another_accelerator_is_a_matter_of_values() -> None:
    accelerator = {
        "resourceName": "amd.com/gpu", "count": 8, "products": [], "nodeSelector": {"zone": "a"},
        "tolerations": [
            {"key": "amd", "operator": "Equal", "value": "x", "effect": "NoExecute", "tolerationSeconds": 5},
        ],
    }  # fmt: skip
    made = engine_statefulset(make_cluster(engine={"accelerator": accelerator}))
    spec = pod_spec(made)
    assert "affinity" not in spec
    assert spec["nodeSelector"] == {"zone": "a"}
    assert spec["tolerations"] == accelerator["tolerations"]
    assert only_container(made)["resources"]["limits"] == {"amd.com/gpu": "8"}


def test_simulated_engines_run_anywhere() -> None:
    spec = pod_spec(engine_statefulset(make_cluster(engine={"type": "Simulator"})))
    assert not {"affinity", "nodeSelector", "tolerations"} & spec.keys()


@pytest.mark.parametrize(
    ("cache", "volume", "claims"),
    [
        ({"size": "7Gi"}, {"emptyDir": {"sizeLimit": "7Gi"}}, 0),
        ({"type": "ExistingClaim", "claimName": "c"}, {"persistentVolumeClaim": {"claimName": "c"}}, 0),
        ({"type": "PersistentVolumeClaim", "storageClassName": "fast"}, None, 1),
    ],
)
def test_models_are_stored_where_the_spec_says(
    cache: dict[str, str], volume: dict[str, Any] | None, claims: int
) -> None:
    model = {"name": "m", "cache": cache}
    made = engine_statefulset(make_cluster(model=model))
    templates = made["spec"].get("volumeClaimTemplates", [])
    assert len(templates) == claims
    assert [each["spec"]["storageClassName"] for each in templates] == ["fast"] * claims
    found = volumes(model=model).get("model-cache")
    assert found == (None if volume is None else {"name": "model-cache", **volume})


def test_shared_memory_has_the_requested_size() -> None:
    assert volumes(engine={"sharedMemory": "16Gi"})["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


def test_only_the_sidecar_shares_the_socket() -> None:
    spec = pod_spec(engine_statefulset(make_cluster()))
    (*_, sidecar), (engine,) = spec["initContainers"], spec["containers"]
    shared = {m["name"]: m["mountPath"] for m in engine["volumeMounts"]}.items() & {
        m["name"]: m["mountPath"] for m in sidecar["volumeMounts"]
    }.items()
    assert dict(shared) == {
        "channel": "/run/agentserving", "tmp": "/tmp", "ticket-key": "/etc/agentserving/ticket",
    }, "of the ticket's keys both have the public ones only"  # fmt: skip


def test_a_leaving_engine_has_more_time_than_its_calls() -> None:
    spec = pod_spec(engine_statefulset(make_cluster(engine={"drainSeconds": 900})))
    assert spec["terminationGracePeriodSeconds"] > 900
    assert "900" in spec["initContainers"][-1]["args"]
