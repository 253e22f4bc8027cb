"""What people and admission add to our objects stays, and costs no writes; on a real API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agentserving_operator.api_server import path_of
from agentserving_operator.observe.settled import Settled
from agentserving_operator.reconcile import VisitResult
from kube.client import Kube, eventually
from kube.server import OPERATOR, ApiServer
from kube.visiting import change, children, edit_container, make, versions, visit

WRITES = ("create", "patch", "update", "delete")


@pytest.fixture
def operator(server: ApiServer) -> Path:
    return server.kubeconfig(OPERATOR)


def writes(server: ApiServer, namespace: str) -> int:
    return len(
        [e for e in server.audited() if e["verb"] in WRITES and e.get("objectRef", {}).get("namespace") == namespace]
    )


def _add_container(live: dict[str, Any]) -> None:
    live["containers"].insert(0, {"name": "mesh", "image": "mesh:1"})


ADDED = {
    "a variable": lambda pod: pod["containers"][0]["env"].append({"name": "HTTP_PROXY", "value": "x"}),
    "a variable in front": lambda pod: pod["containers"][0]["env"].insert(0, {"name": "HTTP_PROXY", "value": "x"}),
    "a toleration": lambda pod: pod.update(tolerations=[{"key": "spot", "operator": "Exists"}]),
    "a sidecar": _add_container,
    "a port": lambda pod: pod["containers"][0]["ports"].append({"name": "debug", "containerPort": 5678}),
    "another order": lambda pod: (pod["containers"][0]["env"].reverse(), pod["volumes"].reverse()),
}


@pytest.mark.parametrize("add", ADDED.values(), ids=ADDED)
def test_what_others_add_stays_and_costs_no_write(
    server: ApiServer, admin: Kube, namespace: str, operator: Path, add: Callable[[dict[str, Any]], object]
) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    path = path_of("StatefulSet", namespace, "demo-engine")
    found = admin.get(path)
    add(found["spec"]["template"]["spec"])
    before = admin.must("PUT", path, found)["metadata"]["resourceVersion"]
    written = writes(server, namespace)
    # A new operator does not remember anything.
    for _ in range(2):
        assert visit(operator, namespace) is VisitResult.SETTLED
    assert writes(server, namespace) == written
    assert admin.get(path)["metadata"]["resourceVersion"] == before


# Adds to every workload what meshes and proxies add, and rewrites images as registry mirrors do.
MUTATIONS = (
    """object.spec.template.spec.containers[0].env.exists(each, each.name == "HTTP_PROXY") ? [] : [
        JSONPatch{op: "add", path: "/spec/template/spec/containers/0/env/-",
                  value: Object.spec.template.spec.containers.env{name: "HTTP_PROXY", value: "http://proxy.test"}}]""",
    """has(object.spec.template.spec.tolerations) ? [] : [
        JSONPatch{op: "add", path: "/spec/template/spec/tolerations", value: []},
        JSONPatch{op: "add", path: "/spec/template/spec/tolerations/-",
                  value: Object.spec.template.spec.tolerations{key: "spot", operator: "Exists"}}]""",
    """object.spec.template.spec.containers[0].image.startsWith("mirror.test/") ? [] : [
        JSONPatch{op: "replace", path: "/spec/template/spec/containers/0/image",
                  value: "mirror.test/" + object.spec.template.spec.containers[0].image}]""",
)
ADMISSION = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolic"


@pytest.fixture
def mutated_namespace(admin: Kube, namespace: str) -> Iterator[str]:
    """Every workload in it is changed at admission."""
    rule = {
        "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
        "resources": ["deployments", "statefulsets"],
    }  # fmt: skip
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    spec = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": selector}, "reinvocationPolicy": "Never",
        "failurePolicy": "Fail",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": each}} for each in MUTATIONS],
    }  # fmt: skip
    named = {"metadata": {"name": namespace}}
    admin.must("POST", f"{ADMISSION}ies", {**named, "spec": spec})
    admin.must("POST", f"{ADMISSION}ybindings", {**named, "spec": {"policyName": namespace}})
    probe = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "probe"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "b"}]}]},
            },
        },
    }  # fmt: skip

    def is_in_force() -> bool:
        made = admin.must("POST", path_of("Deployment", namespace), probe, dryRun="All")
        return str(made["spec"]["template"]["spec"]["containers"][0]["image"]) == "mirror.test/i"

    eventually("the policy is in force", is_in_force)
    yield namespace
    admin.must("DELETE", f"{ADMISSION}ybindings/{namespace}")
    admin.must("DELETE", f"{ADMISSION}ies/{namespace}")


def test_admission_that_changes_every_workload_costs_one_write_each(
    server: ApiServer, admin: Kube, mutated_namespace: str, operator: Path
) -> None:
    namespace, settled = mutated_namespace, Settled()
    make(admin, namespace)
    visit(operator, namespace, settled=settled)
    pod = children(admin, namespace)["Deployment", "demo-gateway"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"].startswith("mirror.test/")
    assert pod["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    before, written = versions(admin, namespace), writes(server, namespace)
    for _ in range(2):
        assert visit(operator, namespace, settled=settled) is VisitResult.SETTLED
    assert writes(server, namespace) == written
    # What we set is still repaired, and still follows the spec.
    edit_container("Deployment", "demo-gateway", lambda one: one["args"].append("--more"))(admin, namespace)
    change(admin, namespace, {"engine": {"replicas": 5}})
    visit(operator, namespace, settled=settled)
    found = children(admin, namespace)
    assert "--more" not in found["Deployment", "demo-gateway"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert found["StatefulSet", "demo-engine"]["spec"]["replicas"] == 5
    assert before.keys() == versions(admin, namespace).keys()
