"""Causes that only other controllers' Events explain show in conditions, on a real API server's Events.

There are no controllers here, so tests write the Events and statuses that controllers write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentserving_operator.api_server import path_of
from agentserving_operator.manifests.common import Component, labels
from agentserving_operator.reconcile import VisitResult
from kube.client import CLUSTERS, Kube, eventually
from kube.operator_process import OperatorProcess
from kube.server import OPERATOR, ApiServer
from kube.visiting import MERGE, SIMULATED, change, conditions, live, make, visit

QUOTA = (
    "create Pod demo-engine-0 in StatefulSet demo-engine failed error: "
    'pods "demo-engine-0" is forbidden: exceeded quota: small'
)
NO_SECRET = 'MountVolume.SetUp failed for volume "model-token" : secret "hugging-face" not found'
NO_CLASS = 'storageclass.storage.k8s.io "ssd" not found'


@pytest.fixture
def operator(server: ApiServer) -> Path:
    return server.kubeconfig(OPERATOR)


def warn(admin: Kube, namespace: str, kind: str, name: str, reason: str, message: str, uid: str = "") -> None:
    """An Event as StatefulSet controller, kubelet and provisioners write it: through the older API."""
    about = {"kind": kind, "name": name, "namespace": namespace, **({"uid": uid} if uid else {})}
    at = "2026-01-01T00:00:00Z"
    body = {
        "metadata": {"generateName": "warning-"}, "involvedObject": about, "type": "Warning", "reason": reason,
        "message": message, "firstTimestamp": at, "lastTimestamp": at, "count": 1,
    }  # fmt: skip
    admin.must("POST", f"/api/v1/namespaces/{namespace}/events", body)


def seen(admin: Kube, namespace: str, workload: str = "demo-engine") -> None:
    """The StatefulSet controller has looked, and no pod is ready."""
    path = path_of("StatefulSet", namespace, workload)
    status = {"replicas": 0, "observedGeneration": admin.get(path)["metadata"]["generation"]}
    admin.must("PATCH", f"{path}/status", {"status": status}, MERGE)


def pod(admin: Kube, namespace: str, name: str = "demo-engine-0", **status: Any) -> str:
    """A pod of the engines; gives its uid."""
    security = {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    body = {
        "metadata": {"name": name, "labels": labels("demo", Component.ENGINE)},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [{"name": "engine", "image": "e", "securityContext": security}],
        },
    }
    made = admin.ask("POST", path_of("Pod", namespace), body)
    if made.status_code == 403 and "serviceaccount" in made.text:
        admin.must("POST", path_of("ServiceAccount", namespace), {"metadata": {"name": "default"}})
        made = admin.ask("POST", path_of("Pod", namespace), body)
    assert made.status_code == 201, made.text
    waiting = {"name": "engine", "state": {"waiting": {"reason": "ContainerCreating"}}, **_RAN_NEVER}
    admin.must(
        "PATCH",
        f"{path_of('Pod', namespace, name)}/status",
        {"status": {"containerStatuses": [waiting], **status}},
        MERGE,
    )
    return str(made.json()["metadata"]["uid"])


_RAN_NEVER: dict[str, Any] = {"ready": False, "restartCount": 0, "image": "e", "imageID": ""}


def engines(admin: Kube, namespace: str) -> tuple[str, str]:
    """Reason and message of EnginesReady; empty before the first visit has ended."""
    found = conditions(live(admin, namespace)).get("EnginesReady", {"reason": "", "message": ""})
    return found["reason"], found["message"]


def test_a_quota_is_named_where_a_statefulset_says_nothing(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    seen(admin, namespace)
    warn(admin, namespace, "StatefulSet", "demo-engine", "FailedCreate", QUOTA)
    assert visit(operator, namespace) is VisitResult.WAITING
    reason, message = engines(admin, namespace)
    assert reason == "QuotaExceeded"
    assert "raise the ResourceQuota" in message
    degraded = conditions(live(admin, namespace))["Degraded"]
    assert (degraded["status"], degraded["reason"]) == ("True", "QuotaExceeded")


def test_a_missing_secret_is_named_with_its_volume(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    seen(admin, namespace)
    uid = pod(admin, namespace)
    warn(admin, namespace, "Pod", "demo-engine-0", "FailedMount", NO_SECRET, uid)
    visit(operator, namespace)
    reason, message = engines(admin, namespace)
    assert reason == "VolumeNotMounted"
    assert 'secret "hugging-face" not found' in message


def test_a_claim_without_a_volume_is_named_where_the_scheduler_says_only_that(
    admin: Kube, namespace: str, operator: Path
) -> None:
    store = {"etcd": {"storageClassName": "ssd"}}
    make(admin, namespace, {**SIMULATED, "store": store})
    visit(operator, namespace)
    seen(admin, namespace, "demo-etcd")
    unbound = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "unbound claims"}
    body = labels("demo", Component.ETCD)
    pod(admin, namespace, "demo-etcd-0", conditions=[unbound])
    admin.must("PATCH", path_of("Pod", namespace, "demo-etcd-0"), {"metadata": {"labels": body}}, MERGE)
    warn(admin, namespace, "PersistentVolumeClaim", "data-demo-etcd-0", "ProvisioningFailed", NO_CLASS)
    visit(operator, namespace)
    found = conditions(live(admin, namespace))["StoreReady"]
    assert found["reason"] == "VolumePending"
    assert NO_CLASS in found["message"]


def test_a_running_operator_sees_an_event_that_no_watch_reports(
    server: ApiServer, admin: Kube, namespace: str, tmp_path: Path
) -> None:
    process = OperatorProcess(server, tmp_path, namespaces=namespace)
    try:
        make(admin, namespace)
        path = path_of("StatefulSet", namespace, "demo-engine")
        eventually("the engines are there", lambda: admin.get(path))
        seen(admin, namespace)
        eventually("it waits", lambda: engines(admin, namespace)[0] == "Starting")
        warn(admin, namespace, "StatefulSet", "demo-engine", "FailedCreate", QUOTA)
        eventually("it is named", lambda: engines(admin, namespace)[0] == "QuotaExceeded")
    finally:
        process.close()


def test_another_type_of_engine_with_claims_is_refused_at_apply(admin: Kube, namespace: str) -> None:
    make(admin, namespace, {"model": {"name": "m", "cache": {"type": "PersistentVolumeClaim"}}})
    answer = admin.ask(
        "PATCH", f"{CLUSTERS.format(namespace)}/demo", {"spec": {"engine": {"type": "Simulator"}}}, MERGE
    )
    assert answer.status_code == 422
    assert "engine.type cannot be changed with model.cache.type PersistentVolumeClaim" in answer.text


def test_a_field_that_cannot_change_says_how_to_replace_the_object(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    # Of another version of the operator, for instance.
    path = path_of("StatefulSet", namespace, "demo-engine")
    found = admin.get(path)
    admin.must("DELETE", path)
    found["metadata"] = {key: found["metadata"][key] for key in ("name", "labels", "ownerReferences")}
    found["spec"]["serviceName"] = "other"
    admin.must("POST", path_of("StatefulSet", namespace), found)
    change(admin, namespace, {"engine": {"replicas": 3}})
    visit(operator, namespace)
    ready = conditions(live(admin, namespace))["Ready"]
    assert ready["reason"] == "CannotBeChanged"
    assert "kubectl delete statefulset demo-engine --cascade=orphan" in ready["message"]
