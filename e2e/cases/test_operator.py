"""The operator as a process: it watches, repairs, reports its health and ends, and needs no more rights than it has."""

from __future__ import annotations

import base64
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from agentserving.contract.names import engine_name
from agentserving_operator.api_server import CHILD_KINDS, path_of
from agentserving_operator.spec.crd import API_VERSION, BETA, GROUP, PLURAL, VERSION
from cryptography import x509
from kube.client import CLUSTERS, TENANTS, Kube, eventually
from kube.inference_extension import http_route_crd, inference_pool_crd
from kube.leader_worker_set import leader_worker_set_crd
from kube.operator_process import OperatorProcess
from kube.paths import CHART
from kube.server import ApiServer
from kube.visiting import MERGE, SIMULATED, change, children, conditions, live, make, make_tenant, tenant_ready

# Engines on two nodes each.
PAIR = {**SIMULATED, "engine": {**SIMULATED["engine"], "nodes": 2, "replicas": 1}}
CLUSTERS_EVERYWHERE = f"/apis/agentserving.io/v1alpha1/{PLURAL}"
# The goal, 100 MB. Control planes, none of which answers here, add about ten.
MAX_RSS_MIB = 95
WRITES = ("create", "patch", "update", "delete")


@pytest.fixture(scope="module")
def running(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    for each in server.admin.get(CLUSTERS_EVERYWHERE)["items"]:
        server.admin.must("DELETE", f"{CLUSTERS.format(each['metadata']['namespace'])}/{each['metadata']['name']}")
    process = OperatorProcess(server, tmp_path_factory.mktemp("operator"))
    try:
        yield process
    finally:
        process.close()


def objects(admin: Kube, namespace: str) -> int:
    return len(children(admin, namespace))


def test_it_creates_repairs_and_follows_changes(admin: Kube, namespace: str, running: OperatorProcess) -> None:
    make(admin, namespace)
    eventually("all objects are there", lambda: objects(admin, namespace) == 21)
    eventually("the status is written", lambda: "Ready" in conditions(live(admin, namespace)))
    admin.must("DELETE", path_of("Service", namespace, "demo-gateway"))
    eventually("the Service is back", lambda: admin.get(path_of("Service", namespace, "demo-gateway")))
    change(admin, namespace, {"engine": {"replicas": 7}})
    engine = path_of("StatefulSet", namespace, "demo-engine")
    eventually("engines are scaled", lambda: admin.get(engine)["spec"]["replicas"] == 7)
    found = live(admin, namespace)
    assert "finalizers" not in found["metadata"]
    assert "annotations" not in found["metadata"]


def test_an_edit_as_v1beta1_leaves_no_trace_that_a_rollback_would_trip_over(
    admin: Kube, namespace: str, running: OperatorProcess
) -> None:
    make(admin, namespace)
    make_tenant(admin, namespace, {"clusterName": "demo"})

    def versions(found: dict[str, Any]) -> set[str]:
        return {entry["apiVersion"] for entry in found["metadata"]["managedFields"]}

    edits = ((CLUSTERS, "demo", {"engine": {"replicas": 3}}), (TENANTS, "research", {"weight": 2}))
    for collection, name, spec in edits:
        path = f"{collection.format(namespace)}/{name}"
        edited = admin.must("PATCH", path.replace(f"/{VERSION}/", f"/{BETA}/"), {"spec": spec}, MERGE)
        assert f"{GROUP}/{BETA}" in versions(edited)
        eventually("the stored version alone", lambda path=path: versions(admin.get(path)) == {API_VERSION})


def test_it_deletes_leftovers_of_an_older_version(admin: Kube, namespace: str, running: OperatorProcess) -> None:
    make(admin, namespace, {**SIMULATED, "gateway": {"ingress": {}}})
    eventually("all objects are there", lambda: objects(admin, namespace) == 22)
    for kind in CHILD_KINDS:
        component = "etcd" if kind == "StatefulSet" else "gateway"
        old = admin.get(path_of(kind, namespace, f"demo-{component}"))
        metadata = {key: old["metadata"][key] for key in ("labels", "ownerReferences")}
        spec = {key: value for key, value in old.get("spec", {}).items() if not key.startswith("clusterIP")}
        body = {"apiVersion": old["apiVersion"], "kind": kind, "metadata": {"name": "old", **metadata}}
        admin.must("POST", path_of(kind, namespace), {**body, **({"spec": spec} if spec else {})})
    eventually("they are gone", lambda: objects(admin, namespace) == 22)


def test_a_settled_cluster_costs_no_writes(
    server: ApiServer, admin: Kube, namespace: str, running: OperatorProcess
) -> None:
    make(admin, namespace)
    eventually("the status is written", lambda: "Ready" in conditions(live(admin, namespace)))

    def seen(verbs: tuple[str, ...]) -> int:
        return len(
            [e for e in server.audited() if e["verb"] in verbs and e.get("objectRef", {}).get("namespace") == namespace]
        )

    eventually("rounds have begun", lambda: seen(("get",)) > 3)
    reads, written = seen(("list",)), seen(WRITES)
    # Three rounds of eight lists each.
    eventually("three rounds", lambda: seen(("list",)) >= reads + 24)
    assert seen(WRITES) == written


def test_twenty_clusters_fit_into_its_memory(admin: Kube, namespace: str, running: OperatorProcess) -> None:
    for number in range(20):
        make(admin, namespace, name=f"demo-{number}")
    for number in range(20):
        eventually("its status is written", lambda: conditions(live(admin, namespace, f"demo-{number}")))  # noqa: B023
    print(f"resident: {running.rss_mib():.0f} MiB")
    assert running.rss_mib() <= MAX_RSS_MIB


def test_its_memory_does_not_grow_with_pods_that_are_not_ours(
    admin: Kube, namespace: str, running: OperatorProcess
) -> None:
    env = [{"name": f"SETTING_{number}", "value": "x" * 200} for number in range(100)]
    pod = {
        "apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "main", "image": "batch:1", "env": env}]},
    }  # fmt: skip
    other = admin.namespace(f"{namespace}-pods")
    before = running.rss_mib()
    for number in range(200):
        admin.must("POST", path_of("Pod", other), {**pod, "metadata": {"name": f"batch-{number}"}})
    # It has seen everything that happened before this.
    make(admin, namespace)
    eventually("the status is written", lambda: "Ready" in conditions(live(admin, namespace)))
    print(f"resident: {before:.0f} MiB, with 200 more pods of 25 kB {running.rss_mib():.0f} MiB")
    assert running.rss_mib() < before + 10


def test_it_is_healthy_while_it_visits(running: OperatorProcess) -> None:
    assert eventually("it is alive", lambda: running.get("/healthz"))
    assert "agentserving_operator_reconciles_total" in running.get("/metrics")
    assert "because of a bug" not in running.log.read_text()


def test_certificates_are_issued_and_repaired(admin: Kube, namespace: str, running: OperatorProcess) -> None:
    make(admin, namespace, {**SIMULATED, "tls": {"issuer": "Operator"}})
    # One for clients with keys.
    eventually("all objects are there, a Service and eight Secrets more", lambda: objects(admin, namespace) == 30)
    path = path_of("Secret", namespace, "demo-client-tls")
    before = admin.get(path)["data"]
    admin.must("PATCH", path, {"data": {"tls.key": "bm9uZQ=="}}, MERGE)
    change(admin, namespace, {"engine": {"replicas": 3}})
    eventually("there is another pair", lambda: admin.get(path)["data"]["tls.crt"] != before["tls.crt"])
    assert admin.get(path)["data"]["ca.crt"] == before["ca.crt"]


def test_with_tls_to_engines_each_has_a_certificate_with_its_name(
    admin: Kube, namespace: str, running: OperatorProcess
) -> None:
    make(admin, namespace, {**SIMULATED, "tls": {"issuer": "Operator", "engines": True}})
    eventually("all objects are there", lambda: objects(admin, namespace) == 30)
    data = admin.get(path_of("Secret", namespace, "demo-engine-identities"))["data"]
    for engine_id in ("demo-engine-0", "demo-engine-1"):
        certificate = x509.load_pem_x509_certificate(base64.b64decode(data[f"{engine_id}.crt"]))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert engine_name(engine_id) in names.get_values_for_type(x509.DNSName)
    engines = admin.get(path_of("StatefulSet", namespace, "demo-engine"))["spec"]["template"]["spec"]
    (engine,) = engines["containers"]
    assert [port["name"] for port in engine["ports"]] == ["https"]
    assert "exec" in engine["livenessProbe"]


def test_a_missing_cert_manager_is_reported(admin: Kube, namespace: str, running: OperatorProcess) -> None:
    make(admin, namespace, {**SIMULATED, "tls": {"issuer": "CertManager", "issuerRef": {"name": "ca"}}})
    eventually("the status is written", lambda: "Ready" in conditions(live(admin, namespace)))
    ready = conditions(live(admin, namespace))["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "CertManagerMissing")
    assert "install it, or use spec.tls.issuer Operator" in ready["message"]
    assert objects(admin, namespace) == 22


def test_an_inference_pool_appears_with_its_kind_and_goes_with_its_field(
    admin: Kube, namespace: str, running: OperatorProcess
) -> None:
    gateway = {"inferencePool": {"enabled": True, "failureMode": "FailClose"}}
    make(admin, namespace, {**SIMULATED, "gateway": gateway})
    eventually("it says what is missing", lambda: _reason(admin, namespace) == "InferenceExtensionMissing")
    assert "install its CRDs" in conditions(live(admin, namespace))["Ready"]["message"]
    admin.define(inference_pool_crd())
    path = path_of("InferencePool", namespace, "demo")
    pool = eventually("the pool is there", lambda: admin.get(path))
    assert pool["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "engine"
    picker = pool["spec"]["endpointPickerRef"]
    assert (picker["name"], picker["failureMode"]) == ("demo-endpoint-picker", "FailClose")
    eventually("nothing is missing", lambda: _reason(admin, namespace) not in ("", "InferenceExtensionMissing"))

    admin.must("PATCH", path, {"spec": {"endpointPickerRef": {"name": "other"}}}, MERGE)
    eventually("it is repaired", lambda: admin.get(path)["spec"] == pool["spec"])
    admin.must("DELETE", path)
    eventually("it is made again", lambda: (admin.get(path) or {}).get("spec") == pool["spec"])

    change(admin, namespace, {"gateway": {"inferencePool": {"enabled": False}}})
    eventually("it is gone", lambda: admin.get(path) is None)
    service = path_of("Service", namespace, "demo-endpoint-picker")
    eventually("so is its picker's Service", lambda: admin.get(service) is None)


def test_a_route_is_changed_and_goes_with_its_field(admin: Kube, namespace: str, running: OperatorProcess) -> None:
    """Its events, which no watch reports, come with the next visit."""
    crd = http_route_crd()
    admin.define(crd)
    make(admin, namespace, {**SIMULATED, "gateway": {"httpRoute": {"parentRefs": [{"name": "public"}]}}})
    path = path_of("HTTPRoute", namespace, "demo")
    eventually("the route is there", lambda: admin.get(path))
    change(admin, namespace, {"gateway": {"httpRoute": {"hostnames": ["llm.example.com"]}}})
    eventually("it is changed", lambda: admin.get(path)["spec"].get("hostnames") == ["llm.example.com"])
    change(admin, namespace, {"gateway": {"httpRoute": None}})
    eventually("it is gone", lambda: admin.get(path) is None)
    admin.must("DELETE", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}")


def test_groups_appear_with_their_kind_and_follow_the_spec(
    admin: Kube, namespace: str, running: OperatorProcess
) -> None:
    make(admin, namespace, PAIR)
    eventually("it says what is missing", lambda: _reason(admin, namespace) == "LeaderWorkerSetMissing", 30)
    assert "install its controller and CRD" in conditions(live(admin, namespace))["Ready"]["message"]
    crd = leader_worker_set_crd()
    admin.define(crd)
    path = path_of("LeaderWorkerSet", namespace, "demo-engine")
    group = eventually("the group is there", lambda: admin.get(path))
    assert group["spec"]["leaderWorkerTemplate"]["size"] == 2
    assert admin.get(path_of("StatefulSet", namespace, "demo-engine")) is None
    eventually("nothing is missing", lambda: _reason(admin, namespace) not in ("", "LeaderWorkerSetMissing"))

    change(admin, namespace, {"engine": {"replicas": 2}})
    eventually("it is scaled", lambda: admin.get(path)["spec"]["replicas"] == 2)
    spec = admin.get(path)["spec"]
    admin.must("PATCH", path, {"spec": {"leaderWorkerTemplate": {"restartPolicy": "None"}}}, MERGE)
    change(admin, namespace, {"engine": {"drainSeconds": 7}})
    eventually(
        "it is repaired and changed",
        lambda: admin.get(path)["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart",
    )
    before = spec["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["terminationGracePeriodSeconds"]
    after = admin.get(path)["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["terminationGracePeriodSeconds"]
    assert after < before
    version = admin.get(path)["metadata"]["resourceVersion"]
    change(admin, namespace, {"gateway": {"replicas": 2}})
    deployment = path_of("Deployment", namespace, "demo-gateway")
    eventually("another visit has come", lambda: admin.get(deployment)["spec"]["replicas"] == 2)
    assert admin.get(path)["metadata"]["resourceVersion"] == version
    # The cluster goes before the kind, or a visit would apply a group of a kind that is being deleted.
    admin.must("DELETE", f"{CLUSTERS.format(namespace)}/demo")
    make_tenant(admin, namespace, {"clusterName": "demo"})
    eventually("its last visit is over", lambda: tenant_ready(admin, namespace) == ("False", "ClusterMissing"))
    admin.must("DELETE", f"{TENANTS.format(namespace)}/research")
    admin.must("DELETE", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}")


def test_a_cluster_of_an_operator_that_is_gone_is_taken_over(
    admin: Kube, namespace: str, running: OperatorProcess
) -> None:
    make(admin, namespace)
    eventually("the status is written", lambda: "Ready" in conditions(live(admin, namespace)))
    path = f"{CLUSTERS.format(namespace)}/demo"
    admin.must("PATCH", f"{path}/status", {"status": {"operator": f"{namespace}/uninstalled"}}, MERGE)
    change(admin, namespace, {"engine": {"replicas": 3}})
    engines = path_of("StatefulSet", namespace, "demo-engine")
    eventually("it is looked after", lambda: admin.get(engines)["spec"]["replicas"] == 3)
    # A StatefulSet controller that has looked, and pods that do not come: Events may say why.
    status = {"replicas": 0, "observedGeneration": admin.get(engines)["metadata"]["generation"]}
    admin.must("PATCH", f"{engines}/status", {"status": status}, MERGE)
    eventually("engines are missing", lambda: conditions(live(admin, namespace))["EnginesReady"]["status"] == "False")


def _reason(admin: Kube, namespace: str) -> str:
    return str(conditions(live(admin, namespace)).get("Ready", {}).get("reason", ""))


def test_a_tenant_follows_its_cluster(admin: Kube, namespace: str, running: OperatorProcess) -> None:
    make_tenant(admin, namespace, {"clusterName": "demo"})
    eventually("it has no cluster", lambda: tenant_ready(admin, namespace) == ("False", "ClusterMissing"))
    make(admin, namespace)
    eventually("it waits", lambda: tenant_ready(admin, namespace) == ("False", "NotReachable"))
    admin.must("DELETE", f"{CLUSTERS.format(namespace)}/demo")
    eventually("it has none again", lambda: tenant_ready(admin, namespace) == ("False", "ClusterMissing"))
    admin.must("DELETE", f"{TENANTS.format(namespace)}/research")
    # No finalizer.
    assert admin.get(f"{TENANTS.format(namespace)}/research") is None


def test_a_deleted_cluster_has_no_finalizer(admin: Kube, namespace: str, running: OperatorProcess) -> None:
    make(admin, namespace)
    eventually("the status is written", lambda: "Ready" in conditions(live(admin, namespace)))
    admin.must("DELETE", f"{CLUSTERS.format(namespace)}/demo")
    assert admin.get(f"{CLUSTERS.format(namespace)}/demo") is None


def granted() -> set[tuple[str, str, str]]:
    rules = yaml.safe_load((CHART / "files/operator-rules.yaml").read_text())
    return {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


def test_it_uses_all_of_its_rights_and_needs_no_others(server: ApiServer, running: OperatorProcess) -> None:
    """Runs after all tests above, in which it does everything that it can do."""
    refused, used = set(), set()
    for event in server.audited():
        where = event.get("objectRef")
        if where is None or "resource" not in where:
            continue
        resource = where["resource"] + (f"/{where['subresource']}" if "subresource" in where else "")
        use = (where.get("apiGroup", ""), resource, event["verb"])
        (refused if event.get("responseStatus", {}).get("code") == 403 else used).add(use)
    assert refused == set()
    # The API server checks these rights without a request for them: in an admission plugin, and for each new object
    # that is applied (see below).
    unseen = {("agentserving.io", f"{PLURAL}/finalizers", "update")}
    unseen |= {right for right in granted() if right[2] == "create" and right[1] not in ("secrets", "events")}
    assert granted() - used == unseen
    assert used <= granted()


def test_applying_a_new_object_requires_the_right_to_create_it(admin: Kube, namespace: str) -> None:
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "patcher"}
    rule = {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get", "patch"]}
    admin.must("POST", f"{rbac}/roles", {"metadata": {"name": "r"}, "rules": [rule]})
    admin.must("POST", f"{rbac}/rolebindings", {"metadata": {"name": "r"}, "roleRef": reference, "subjects": [subject]})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}}

    def applied() -> int:
        path, query = path_of("ServiceAccount", namespace, "a"), {"fieldManager": "m"}
        headers = {"Impersonate-User": "patcher"}
        return admin.ask("PATCH", path, account, "application/apply-patch+yaml", headers, **query).status_code

    assert applied() == 403
    rule["verbs"] = ["get", "patch", "create"]
    admin.must("PUT", f"{rbac}/roles/r", {"metadata": {"name": "r"}, "rules": [rule]})
    eventually("the right is there", lambda: applied() == 201)


def test_it_ends_on_sigterm(running: OperatorProcess) -> None:
    running.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert running.process.wait(20) == 0, running.log.read_text()[-2000:]
    assert time.monotonic() - began < 15
