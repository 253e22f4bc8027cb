"""AgentServingTenants on a real API server: what is accepted, and what visits report. e2e/nodes has a control plane."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from agentserving_operator.reconcile import VisitResult
from agentserving_operator.spec.crd import API_VERSION, TENANT_KIND
from agentserving_operator.spec.parsing import parse, plain
from agentserving_operator.spec.tenant import TenantSpec
from kube.client import CLUSTERS, TENANTS, Kube
from kube.paths import ROOT
from kube.server import OPERATOR, ApiServer
from kube.visiting import MERGE, live, make, make_tenant, play_controllers, tenant_ready, visit

LIMITS = {"programs": 200, "callsAtOnce": 40, "callsPerMinute": 600, "tokensPerMinute": 100_000, "tokensPerDay": 10**12}


def create(admin: Kube, namespace: str, spec: Any, name: str = "research") -> Any:
    body = {"apiVersion": API_VERSION, "kind": TENANT_KIND, "metadata": {"name": name}, "spec": spec}
    return admin.ask("POST", TENANTS.format(namespace), body, fieldValidation="Strict", dryRun="All")


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterName": "demo"},
        {"clusterName": "demo", "weight": 1000, "limits": {"programs": 1}},
        {"clusterName": "demo", "programBudget": {"tokens": 10**12, "engineSeconds": 300}},
        {"clusterName": "demo", "tenant": "Team.A_1", "weight": 2, "limits": LIMITS},
    ],
)
def test_accepted_specs_get_the_same_defaults(admin: Kube, namespace: str, spec: Any) -> None:
    answer = create(admin, namespace, spec)
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"] == plain(parse(TenantSpec, spec))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec.clusterName"),
        ({"clusterName": "Demo"}, "spec.clusterName"),
        ({"clusterName": "demo", "tenant": "a b"}, "spec.tenant"),
        ({"clusterName": "demo", "weight": 0}, "spec.weight"),
        ({"clusterName": "demo", "limits": {"programs": 0}}, "spec.limits.programs"),
        ({"clusterName": "demo", "limits": {"tokensPerDay": 2**53}}, "spec.limits.tokensPerDay"),
        ({"clusterName": "demo", "limits": {"calls": 1}}, "spec.limits.calls"),
        ({"clusterName": "demo", "programBudget": {"tokens": 2**53}}, "spec.programBudget.tokens"),
        ({"clusterName": "demo", "serviceClass": "interactive"}, "spec.serviceClass"),
    ],
)
def test_invalid_specs_are_refused_at_the_field(admin: Kube, namespace: str, spec: Any, field: str) -> None:
    answer = create(admin, namespace, spec)
    assert answer.status_code in (400, 422), answer.text
    assert field in answer.json()["message"]


def test_the_example_is_accepted(admin: Kube, namespace: str) -> None:
    spec = yaml.safe_load((ROOT / "examples/tenant.yaml").read_text())["spec"]
    assert create(admin, namespace, spec).status_code == 201


def test_a_name_that_no_tenant_can_have_is_refused_unless_the_spec_names_one(admin: Kube, namespace: str) -> None:
    answer = create(admin, namespace, {"clusterName": "demo"}, "x" * 65)
    assert (answer.status_code, "at most 64 characters" in answer.text) == (422, True)
    assert create(admin, namespace, {"clusterName": "demo", "tenant": "x"}, "x" * 65).status_code == 201


@pytest.mark.parametrize("change", [{"clusterName": "other"}, {"tenant": "other"}, {"tenant": None}])
def test_whose_settings_they_are_cannot_be_changed(admin: Kube, namespace: str, change: Any) -> None:
    make_tenant(admin, namespace, {"clusterName": "demo", "tenant": "t"})
    answer = admin.ask("PATCH", f"{TENANTS.format(namespace)}/research", {"spec": change}, MERGE)
    assert answer.status_code == 422, answer.text
    assert "cannot be changed: create a new AgentServingTenant" in answer.json()["message"]


def test_kubectl_prints_its_cluster_and_whether_it_is_in_force(admin: Kube, namespace: str) -> None:
    make_tenant(admin, namespace, {"clusterName": "demo", "weight": 2})
    table = admin._http.get(
        TENANTS.format(namespace), headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    ).json()
    names = [column["name"] for column in table["columnDefinitions"]]
    assert names == ["Name", "Cluster", "Weight", "Ready", "Reason", "Age"]
    assert table["rows"][0]["cells"][:3] == ["research", "demo", 2]


def test_visits_record_a_tenant_and_say_why_it_is_not_in_force(server: ApiServer, admin: Kube, namespace: str) -> None:
    operator = server.kubeconfig(OPERATOR)
    make(admin, namespace)
    make_tenant(admin, namespace, {"clusterName": "demo", "limits": LIMITS})
    make_tenant(admin, namespace, {"clusterName": "demo", "tenant": "research"}, "second")
    visit(operator, namespace)
    assert tenant_ready(admin, namespace) == ("False", "NotReachable")
    assert tenant_ready(admin, namespace, "second") == ("False", "TenantTaken")
    assert live(admin, namespace)["status"]["tenants"] == ["research"]
    before = _versions(admin, namespace)
    visit(operator, namespace)
    assert _versions(admin, namespace) == before
    # Its pods are ready, but it cannot be reached from here.
    play_controllers(admin, namespace)
    assert visit(operator, namespace) is VisitResult.PENDING
    assert tenant_ready(admin, namespace) == ("False", "NotReachable")
    admin.must("DELETE", f"{TENANTS.format(namespace)}/research")
    visit(operator, namespace)
    # The second one says the same tenant.
    assert live(admin, namespace)["status"]["tenants"] == ["research"]
    admin.must("DELETE", f"{CLUSTERS.format(namespace)}/demo")
    assert visit(operator, namespace) is VisitResult.GONE
    assert tenant_ready(admin, namespace, "second") == ("False", "ClusterMissing")


def _versions(admin: Kube, namespace: str) -> dict[str, str]:
    found = [*admin.get(TENANTS.format(namespace))["items"], live(admin, namespace)]
    return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in found}
