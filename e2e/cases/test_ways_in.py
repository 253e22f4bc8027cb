"""Ingress and HTTPRoute on a real API server: accepted, owned, repaired, and deleted with their fields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agentserving_operator.api_server import path_of
from agentserving_operator.reconcile import VisitResult
from kube.client import CLUSTERS, Kube, eventually
from kube.inference_extension import http_route_crd
from kube.server import OPERATOR, ApiServer
from kube.visiting import MERGE, SIMULATED, change, conditions, live, make, versions, visit

HOSTS = ["llm.example.com"]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ROUTE = {"parentRefs": [{"name": "public", "namespace": "gateways"}], "hostnames": HOSTS, "pathPrefix": "/llama"}


@pytest.fixture
def operator(server: ApiServer) -> Path:
    return server.kubeconfig(OPERATOR)


@pytest.fixture
def routes(admin: Kube) -> Iterator[None]:
    """The Gateway API is installed."""
    crd = http_route_crd()
    admin.define(crd)
    try:
        yield
    finally:
        path = f"{CRDS}/{crd['metadata']['name']}"
        admin.must("DELETE", path)
        eventually("the CRD is gone", lambda: admin.get(path) is None)


def entrances(admin: Kube, namespace: str) -> dict[str, Any]:
    return conditions(live(admin, namespace))["EntrancesReady"]


def test_an_ingress_follows_its_field_and_says_whether_it_has_an_address(
    admin: Kube, namespace: str, operator: Path
) -> None:
    ingress = {"className": "nginx", "hosts": HOSTS, "tlsSecretName": "front", "annotations": {"example.com/a": "b"}}
    make(admin, namespace, {**SIMULATED, "gateway": {"ingress": ingress}})
    visit(operator, namespace)
    path = path_of("Ingress", namespace, "demo-gateway")
    found = admin.get(path)
    (rule,) = found["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    service = admin.get(path_of("Service", namespace, backend["name"]))
    assert backend["port"]["number"] in [each["port"] for each in service["spec"]["ports"]]
    assert found["metadata"]["annotations"]["example.com/a"] == "b"
    assert (entrances(admin, namespace)["status"], entrances(admin, namespace)["reason"]) == ("False", "NoAddress")

    # What an ingress controller writes.
    status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    admin.must("PATCH", f"{path}/status", {"status": status}, MERGE)
    visit(operator, namespace)
    assert entrances(admin, namespace)["message"] == "Ingress 192.0.2.1"
    before = versions(admin, namespace)
    visit(operator, namespace)
    assert versions(admin, namespace) == before

    admin.must("PATCH", path, {"spec": {"rules": [], "defaultBackend": {"service": backend}}}, MERGE)
    visit(operator, namespace)
    assert admin.get(path)["spec"]["rules"] == found["spec"]["rules"]

    change(admin, namespace, {"gateway": {"ingress": None}})
    visit(operator, namespace)
    assert admin.get(path) is None


def test_a_route_follows_its_field_and_quotes_the_gateways_refusal(
    admin: Kube, namespace: str, operator: Path, routes: None
) -> None:
    make(admin, namespace, {**SIMULATED, "gateway": {"httpRoute": {**ROUTE, "headers": {"x-model": "llama"}}}})
    assert visit(operator, namespace) is VisitResult.REFUSED
    path = path_of("HTTPRoute", namespace, "demo")
    found = admin.get(path)
    assert found["metadata"]["ownerReferences"][0]["name"] == "demo"
    assert "is there such a Gateway" in entrances(admin, namespace)["message"]

    def answered(status: str, message: str) -> None:
        """What a gateway's controller writes."""
        at = "2026-01-01T00:00:00Z"
        said = {"type": "Accepted", "status": status, "reason": "R", "message": message, "lastTransitionTime": at}
        parent = {"parentRef": ROUTE["parentRefs"][0], "controllerName": "example.com/c", "conditions": [said]}
        admin.must("PATCH", f"{path}/status", {"status": {"parents": [parent]}}, MERGE)

    answered("False", "no listener allows namespace x")
    visit(operator, namespace)
    assert "no listener allows namespace x" in entrances(admin, namespace)["message"]
    answered("True", "")
    assert visit(operator, namespace) is VisitResult.SETTLED
    assert entrances(admin, namespace)["message"] == "HTTPRoute public"
    before = admin.get(path)["metadata"]["resourceVersion"]
    visit(operator, namespace)
    assert admin.get(path)["metadata"]["resourceVersion"] == before

    change(admin, namespace, {"gateway": {"httpRoute": None}})
    visit(operator, namespace)
    assert admin.get(path) is None


def test_a_cluster_without_the_gateway_api_says_what_to_install(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace, {**SIMULATED, "gateway": {"httpRoute": ROUTE}})
    visit(operator, namespace)
    ready = conditions(live(admin, namespace))["Ready"]
    assert ready["reason"] == "GatewayApiMissing"
    assert "spec.gateway.ingress" in ready["message"]


def test_families_that_the_kubernetes_cluster_lacks_are_refused_with_its_words(
    admin: Kube, namespace: str, operator: Path
) -> None:
    make(admin, namespace, {**SIMULATED, "network": {"ipFamilies": ["IPv6"]}})
    visit(operator, namespace)
    ready = conditions(live(admin, namespace))["Ready"]
    assert ready["reason"] == "ApplyRefused"
    assert "ipFamilies" in ready["message"]


def test_two_stacks_are_taken_where_there_are_two(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace, {**SIMULATED, "network": {"ipFamilyPolicy": "PreferDualStack"}})
    visit(operator, namespace)
    spec = admin.get(path_of("Service", namespace, "demo-gateway"))["spec"]
    assert spec["ipFamilyPolicy"] == "PreferDualStack"


@pytest.mark.parametrize("wrong", [{"ingress": {"hosts": ["a_b"]}}, {"httpRoute": {"parentRefs": []}}])
def test_what_no_controller_could_serve_is_refused_at_apply(admin: Kube, namespace: str, wrong: Any) -> None:
    body = {
        "apiVersion": "agentserving.io/v1alpha1", "kind": "AgentServingCluster", "metadata": {"name": "demo"},
        "spec": {**SIMULATED, "gateway": wrong},
    }  # fmt: skip
    answer = admin.ask("POST", CLUSTERS.format(namespace), body)
    assert answer.status_code == 422, answer.text
