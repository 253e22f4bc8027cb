"""Visits of the operator on a real API server, with the rights that the chart gives it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from agentserving_operator.api_server import path_of
from agentserving_operator.manifests.common import Component, labels
from agentserving_operator.reconcile import VisitResult
from kube.client import CLUSTERS, Kube, eventually
from kube.server import OPERATOR, ApiServer
from kube.visiting import (
    MERGE,
    SIMULATED,
    change,
    children,
    conditions,
    edit_container,
    live,
    make,
    play_controllers,
    versions,
    visit,
    wanted,
)

WRITES = ("create", "patch", "update", "delete")
TRUE_KINDS = ("Ready", "ControlPlaneReady", "StoreReady", "EnginesReady", "GatewayReady")


@pytest.fixture
def operator(server: ApiServer) -> Path:
    return server.kubeconfig(OPERATOR)


def writes(server: ApiServer, namespace: str) -> int:
    return len(
        [e for e in server.audited() if e["verb"] in WRITES and e.get("objectRef", {}).get("namespace") == namespace]
    )


def test_a_cluster_becomes_all_its_objects(admin: Kube, namespace: str, operator: Path) -> None:
    uid = make(admin, namespace)["metadata"]["uid"]
    assert visit(operator, namespace) is VisitResult.SETTLED
    found = children(admin, namespace)
    assert sorted(name for kind, name in found if kind in ("Deployment", "StatefulSet")) == [
        "demo-control-plane", "demo-engine", "demo-etcd", "demo-gateway",
    ]  # fmt: skip
    assert len(found) == 4 + 4 + 3 + 5 + 4 + 1
    for each in found.values():
        (owner,) = each["metadata"]["ownerReferences"]
        assert owner["uid"] == uid
        assert {entry["manager"] for entry in each["metadata"]["managedFields"]} == {OPERATOR}
    assert len(base64.b64decode(found["Secret", "demo-ticket-key"]["data"]["key"])) == 32


def test_the_first_visit_sets_conditions_and_writes_an_event(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    found = live(admin, namespace)
    others = {"Progressing", "Degraded", "ClientsAuthenticated", "EntrancesReady", "PolicyInForce"}
    assert set(conditions(found)) == {*TRUE_KINDS, *others}
    assert conditions(found)["Ready"]["status"] == "False"
    assert found["status"]["observedGeneration"] == 1
    assert found["status"]["url"] == f"http://demo-gateway.{namespace}.svc/v1"
    # The API server has events of its own.
    events = [each for each in admin.get(path_of("Event", namespace))["items"] if each["regarding"]["name"] == "demo"]
    assert [(each["type"], each["reason"]) for each in events] == [("Normal", "Starting")]


@pytest.mark.parametrize(
    "spec",
    [
        SIMULATED,
        {
            "model": {"name": "m", "token": {"secretName": "hf"}, "cache": {"type": "PersistentVolumeClaim"}},
            "engine": {
                "accelerator": {"count": 4, "nodeSelector": {"a": "b"}}, "kvOffloadGiB": 8, "sharedMemory": "16384Mi",
                "resources": {"requests": {"cpu": "8000m", "memory": "65536Mi"}, "limits": {"ephemeralStorage": "1Gi"}},
            },
            "store": {"etcd": {"members": 3, "size": "1024Mi", "storageClassName": "ssd"}},
            "gateway": {"drainSeconds": 0, "serviceType": "NodePort", "port": 8000},
        },
        {**SIMULATED, "store": {"type": "ExternalEtcd", "external": {"endpoints": ["e:2379"], "tlsSecretName": "t"}}},
        {**SIMULATED, "tls": {"issuer": "Operator"}, "store": {"etcd": {"members": 3}}},
        {"model": {"name": "m"}, "auth": {"clients": "Keys"}, "network": {"modelSources": [{"cidr": "10.0.0.0/8"}]}},
    ],
    ids=["simulator", "large", "external", "tls", "keys"],
)  # fmt: skip
def test_a_second_visit_writes_nothing(
    server: ApiServer, admin: Kube, namespace: str, operator: Path, spec: Any
) -> None:
    make(admin, namespace, spec)
    visit(operator, namespace)
    before, written = versions(admin, namespace), writes(server, namespace)
    assert visit(operator, namespace) is VisitResult.SETTLED
    assert versions(admin, namespace) == before
    assert writes(server, namespace) == written


def _edit(kind: str, name: str, patch: dict[str, Any]) -> Any:
    return lambda admin, namespace: admin.must("PATCH", path_of(kind, namespace, name), patch, MERGE)


def _remove(kind: str, name: str) -> Any:
    return lambda admin, namespace: admin.must("DELETE", path_of(kind, namespace, name))


@pytest.mark.parametrize(
    "drift",
    [
        _edit("Deployment", "demo-gateway", {"spec": {"replicas": 5}}),
        _edit("StatefulSet", "demo-engine", {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}),
        _edit("Service", "demo-gateway", {"metadata": {"labels": {"app.kubernetes.io/instance": None}}}),
        _edit("Service", "demo-gateway", {"spec": {"selector": {"app.kubernetes.io/component": "etcd"}}}),
        _edit("PodDisruptionBudget", "demo-etcd", {"spec": {"maxUnavailable": 3}}),
        _edit("NetworkPolicy", "demo-etcd", {"spec": {"ingress": []}}),
        _edit("ServiceAccount", "demo-engine", {"automountServiceAccountToken": True}),
        _edit("Deployment", "demo-gateway", {"metadata": {"ownerReferences": None}}),
        edit_container("StatefulSet", "demo-engine", lambda one: one["env"].pop()),
        edit_container("StatefulSet", "demo-engine", lambda one: one["args"].append("--more")),
        edit_container("Deployment", "demo-gateway", lambda one: one.update(image="other:1")),
        _edit("NetworkPolicy", "demo-engine", {"spec": {"ingress": [{}]}}),
        _remove("StatefulSet", "demo-etcd"),
        _remove("NetworkPolicy", "demo-engine"),
    ],
)
def test_drift_is_repaired(admin: Kube, namespace: str, operator: Path, drift: Any) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    before = wanted(children(admin, namespace))
    drift(admin, namespace)
    assert wanted(children(admin, namespace)) != before
    visit(operator, namespace)
    assert wanted(children(admin, namespace)) == before


def test_there_and_back_again_is_as_before(admin: Kube, namespace: str, operator: Path) -> None:
    there = {
        "engine": {
            "replicas": 5, "sharedMemory": "1Gi", "extraArgs": ["--x"], "maxSequences": 4,
            "resources": {"limits": {"memory": "1Gi"}}, "simulator": {"speedPercent": 500},
        },
        "gateway": {"replicas": 3, "port": 81, "drainSeconds": 0, "serviceType": "NodePort"},
        "controlPlane": {"programIdleSeconds": 5},
        "scheduling": {"policy": "fcfs"},
    }  # fmt: skip
    back = {
        "engine": {
            "replicas": 2, "sharedMemory": None, "extraArgs": None, "maxSequences": None, "resources": None,
            "simulator": None,
        },
        "gateway": None, "controlPlane": None, "scheduling": None,
    }  # fmt: skip
    make(admin, namespace)
    visit(operator, namespace)
    before = wanted(children(admin, namespace))
    change(admin, namespace, there)
    visit(operator, namespace)
    assert wanted(children(admin, namespace)) != before
    change(admin, namespace, back)
    visit(operator, namespace)
    after = wanted(children(admin, namespace))
    assert {key: after[key] for key in after if after[key] != before[key]} == {}
    assert live(admin, namespace)["status"]["observedGeneration"] == 3


def test_an_existing_ticket_key_stays(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    key = children(admin, namespace)["Secret", "demo-ticket-key"]
    change(admin, namespace, {"engine": {"replicas": 3}})
    visit(operator, namespace)
    assert children(admin, namespace)["Secret", "demo-ticket-key"] == key


def test_a_requested_ticket_key_is_announced(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    before = children(admin, namespace)["Secret", "demo-ticket-key"]["data"]
    body = {"metadata": {"annotations": {"agentserving.io/rotate-ticket-key": "1"}}}
    admin.must("PATCH", f"{CLUSTERS.format(namespace)}/demo", body, MERGE)
    for _ in range(2):
        assert visit(operator, namespace) is VisitResult.SETTLED
    secret = children(admin, namespace)["Secret", "demo-ticket-key"]
    assert secret["data"]["key"] == before["key"]
    assert len(base64.b64decode(secret["data"]["key.next"])) == 32
    # The Secret says when a step was: pretend that it was half an hour ago, twice.
    names = {"key", "public", "gateway-key", "gateway-public"}
    for expected in ({*names, *(f"{name}.previous" for name in names)}, names):
        since = {"metadata": {"annotations": {"agentserving.io/rotation-step-since": "2026-01-01T00:00:00Z"}}}
        admin.must("PATCH", path_of("Secret", namespace, "demo-ticket-key"), since, MERGE)
        visit(operator, namespace)
        assert children(admin, namespace)["Secret", "demo-ticket-key"]["data"].keys() == expected
    assert children(admin, namespace)["Secret", "demo-ticket-key"]["data"]["key"] == secret["data"]["key.next"]


# Only the kind of cert-manager's CRD; its validation of Certificates is its own affair.
CERTIFICATES_KIND: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "certificates.cert-manager.io"},
    "spec": {
        "group": "cert-manager.io",
        "scope": "Namespaced",
        "names": {"kind": "Certificate", "plural": "certificates"},
        "versions": [
            {
                "name": "v1", "served": True, "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}  # fmt: skip


def test_certificates_are_created_once_cert_manager_is_installed(
    server: ApiServer, admin: Kube, namespace: str, operator: Path
) -> None:
    make(admin, namespace, {**SIMULATED, "tls": {"issuer": "CertManager", "issuerRef": {"name": "ca"}}})
    assert visit(operator, namespace) is VisitResult.REFUSED
    assert conditions(live(admin, namespace))["Ready"]["reason"] == "CertManagerMissing"
    admin.define(CERTIFICATES_KIND)
    try:
        # Nobody fills the Secrets here, so the visits that follow are soon.
        eventually("the kind is known", lambda: visit(operator, namespace) is VisitResult.PENDING)
        found = admin.get(path_of("Certificate", namespace))["items"]
        assert {each["metadata"]["name"] for each in found} == {
            f"demo-{leaf}-tls"
            for leaf in (
                "control-plane", "etcd", "gateway", "operator", "admin", "client", "engine-0", "engine-1",
            )
        }  # fmt: skip
        written = writes(server, namespace)
        assert visit(operator, namespace) is VisitResult.PENDING
        assert writes(server, namespace) == written
    finally:
        admin.must("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/certificates.cert-manager.io")
        eventually("the kind is gone", lambda: admin.get(path_of("Certificate", namespace)) is None)


def test_without_a_word_about_it_a_cluster_has_certificates(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace, {"model": {"name": "m"}, "engine": {"type": "Simulator", "replicas": 2}})
    assert visit(operator, namespace) is VisitResult.SETTLED
    found = children(admin, namespace)
    engines = found["Secret", "demo-engine-identities"]["data"]
    assert {"demo-engine-0.crt", "demo-engine-1.key", "ca.crt"} <= set(engines)
    assert ("Secret", "demo-gateway-tls") in found
    assert (
        "--tls-cert" in found["Deployment", "demo-control-plane"]["spec"]["template"]["spec"]["containers"][0]["args"]
    )


@pytest.mark.parametrize(("is_from_before", "expected"), [(False, "Keys"), (True, "None")])
def test_a_new_cluster_asks_for_keys_and_one_from_before_keys_stays_without(
    admin: Kube, namespace: str, operator: Path, is_from_before: bool, expected: str
) -> None:
    stored = make(admin, namespace, {"model": {"name": "m"}, "engine": {"type": "Simulator", "replicas": 2}})
    assert "clients" not in stored["spec"]["auth"]
    if is_from_before:
        # What an operator that knew of no keys has written.
        status = {"status": {"url": f"http://demo-gateway.{namespace}.svc/v1"}}
        admin.must("PATCH", f"{CLUSTERS.format(namespace)}/demo/status", status, MERGE)
    for _ in range(2):
        assert visit(operator, namespace) is VisitResult.SETTLED
    assert live(admin, namespace)["status"]["clientAuth"] == expected
    found = children(admin, namespace)
    for name in ("demo-control-plane", "demo-gateway"):
        arguments = str(found["Deployment", name]["spec"]["template"]["spec"])
        assert ("--client-auth" in arguments) == (expected == "Keys")
    assert ("--unticketed" in str(found["StatefulSet", "demo-engine"])) == (expected == "Keys")
    change(admin, namespace, {"auth": {"clients": "Keys"}})
    visit(operator, namespace)
    assert live(admin, namespace)["status"]["clientAuth"] == "Keys"


def test_a_secret_that_was_planted_before_the_cluster_is_not_used(admin: Kube, namespace: str, operator: Path) -> None:
    named = {"name": "demo-ticket-key", "labels": labels("demo", Component.CONTROL_PLANE)}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": named, "data": {"key": "a25vd24ga25vd24ga25vd24="}}
    admin.must("POST", path_of("Secret", namespace), body)
    make(admin, namespace)
    assert visit(operator, namespace) is VisitResult.REFUSED
    ready = conditions(live(admin, namespace))["Ready"]
    assert (ready["reason"], "Secret demo-ticket-key exists" in ready["message"]) == ("NameTaken", True)


def test_our_unwanted_objects_are_deleted_and_foreign_ones_stay(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    account = children(admin, namespace)["ServiceAccount", "demo-engine"]
    for name, owners in (("old", account["metadata"]["ownerReferences"]), ("foreign", [])):
        metadata = {"name": name, "labels": account["metadata"]["labels"], "ownerReferences": owners}
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
        admin.must("POST", path_of("ServiceAccount", namespace), body)
    visit(operator, namespace)
    names = [name for kind, name in children(admin, namespace) if kind == "ServiceAccount"]
    assert "foreign" in names
    assert "old" not in names


def test_a_taken_name_is_reported_and_left_alone(admin: Kube, namespace: str, operator: Path) -> None:
    body = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "demo-gateway"}, "spec": {"ports": [{"port": 1}]},
    }  # fmt: skip
    version = admin.must("POST", path_of("Service", namespace), body)["metadata"]["resourceVersion"]
    make(admin, namespace)
    assert visit(operator, namespace) is VisitResult.REFUSED
    ready = conditions(live(admin, namespace))["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "NameTaken")
    assert "Service demo-gateway exists and does not belong to this cluster" in ready["message"]
    assert versions(admin, namespace)["Service", "demo-gateway"] == version


def test_a_namespace_that_is_being_deleted_is_reported(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    admin.must("DELETE", f"/api/v1/namespaces/{namespace}")
    probe = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "probe"}}
    accounts = path_of("ServiceAccount", namespace)
    eventually("it takes nothing new", lambda: admin.ask("POST", accounts, probe, dryRun="All").status_code == 403)
    assert visit(operator, namespace) is VisitResult.REFUSED
    assert conditions(live(admin, namespace))["Ready"]["reason"] == "NamespaceTerminating"


def test_ready_means_all_pods_and_an_unschedulable_one_quotes_the_scheduler(
    admin: Kube, namespace: str, operator: Path
) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    play_controllers(admin, namespace)
    # Pods are ready, but the control plane is not reachable from here: visit again soon.
    assert visit(operator, namespace) is VisitResult.PENDING
    found = live(admin, namespace)
    assert {kind: conditions(found)[kind]["status"] for kind in TRUE_KINDS} == dict.fromkeys(TRUE_KINDS, "True")
    assert found["status"]["engines"] == {"replicas": 2, "ready": 2, "updated": 2, "summary": "2/2"}
    words = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    _unschedulable_engine(admin, namespace, words)
    visit(operator, namespace)
    ready = conditions(live(admin, namespace))["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "Unschedulable")
    assert words in ready["message"]


def _unschedulable_engine(admin: Kube, namespace: str, words: str) -> None:
    pods = path_of("Pod", namespace)
    spec = children(admin, namespace)["StatefulSet", "demo-engine"]["spec"]["template"]["spec"]
    metadata = {"name": "demo-engine-1", "labels": labels("demo", Component.ENGINE)}
    admin.must("POST", pods, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    admin.must("PATCH", f"{pods}/demo-engine-1/status", {"status": {"conditions": [condition]}}, MERGE)
    engine = path_of("StatefulSet", namespace, "demo-engine", "status")
    admin.must("PATCH", engine, {"status": {"readyReplicas": 1, "availableReplicas": 1}}, MERGE)


@pytest.mark.parametrize("engine", ["Simulator", "VLLM"])
def test_pods_meet_pod_security_restricted(admin: Kube, namespace: str, operator: Path, engine: str) -> None:
    make(admin, namespace, {"model": {"name": "m"}, "engine": {"type": engine}})
    visit(operator, namespace)
    for (kind, name), each in children(admin, namespace).items():
        if kind not in ("Deployment", "StatefulSet"):
            continue
        spec = each["spec"]["template"]["spec"]
        # A StatefulSet's claims become volumes of its pods.
        for claim in each["spec"].get("volumeClaimTemplates", []):
            spec.setdefault("volumes", []).append({"name": claim["metadata"]["name"], "emptyDir": {}})
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        answer = admin.ask("POST", path_of("Pod", namespace), pod, dryRun="All")
        assert answer.status_code == 201, answer.text
