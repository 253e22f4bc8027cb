"""A real API server accepts the specs that the operator accepts, and refuses the others at the same field."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.crd import API_VERSION, KIND, PLURAL
from agentserving_operator.spec.parsing import SpecError, parse, plain
from kube.client import CLUSTERS, Kube, eventually
from kube.paths import ROOT
from support.drawn_specs import drawn
from support.spec_samples import INVALID, MINIMAL, VALID

MERGE = "application/merge-patch+json"


def cluster(spec: Any, name: str = "demo") -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}


def create(admin: Kube, namespace: str, body: dict[str, Any], **query: str) -> Any:
    return admin.ask("POST", CLUSTERS.format(namespace), body, fieldValidation="Strict", **query)


@pytest.mark.parametrize("spec", VALID)
def test_accepted_specs_get_the_same_defaults(admin: Kube, namespace: str, spec: Any) -> None:
    answer = create(admin, namespace, cluster(spec))
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"] == plain(parse(ClusterSpec, spec))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("cluster-*.yaml")), ids=lambda path: path.name)
def test_examples_are_accepted(admin: Kube, namespace: str, path: Any) -> None:
    answer = create(admin, namespace, yaml.safe_load(path.read_text()), dryRun="All")
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize(("spec", "field", "words"), INVALID)
def test_specs_that_the_operator_refuses_are_refused_at_the_same_field(
    admin: Kube, namespace: str, spec: Any, field: str, words: str
) -> None:
    answer = create(admin, namespace, cluster(spec), dryRun="All")
    assert answer.status_code in (400, 422), answer.text
    message = answer.json()["message"]
    assert field in message, (words, message)


def test_the_number_of_nodes_cannot_be_changed(admin: Kube, namespace: str) -> None:
    simulated = {**MINIMAL, "engine": {"type": "Simulator"}}
    assert create(admin, namespace, cluster(simulated)).status_code == 201
    answer = admin.ask("PATCH", f"{CLUSTERS.format(namespace)}/demo", {"spec": {"engine": {"nodes": 2}}}, MERGE)
    assert answer.status_code == 422
    assert "nodes cannot be changed: create a new AgentServingCluster" in answer.json()["message"]


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_drawn_specs_are_accepted_by_both_or_by_neither(admin: Kube, namespace: str, first: int) -> None:
    """`null` stands for an absent field at the API server, which removes it before it validates."""
    for seed in range(first, first + 20):
        spec = without_nulls(drawn(seed))
        try:
            parse(ClusterSpec, spec)
            expected = True
        except SpecError:
            expected = False
        answer = create(admin, namespace, cluster(spec), dryRun="All")
        assert answer.status_code < 500, (seed, spec, answer.text)
        assert (answer.status_code == 201) == expected, (seed, spec, answer.text)


def without_nulls(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: without_nulls(value) for key, value in node.items() if value is not None}
    return [without_nulls(each) for each in node] if isinstance(node, list) else node


def test_rules_in_cel_match_rules_in_python(admin: Kube, namespace: str) -> None:
    spec = {**MINIMAL, "store": {"type": "ExternalEtcd"}}
    answer = create(admin, namespace, cluster(spec), dryRun="All").json()
    (cause,) = answer["details"]["causes"]
    assert cause["field"] == "spec.store.external"
    assert "external is needed with type ExternalEtcd, and with no other" in cause["message"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 41, "at most 40 characters"), ("1st", "must begin with a letter"), ("a.b", "must begin with a letter")],
)
def test_names_that_children_cannot_have_are_refused(admin: Kube, namespace: str, name: str, words: str) -> None:
    answer = create(admin, namespace, cluster(MINIMAL, name), dryRun="All")
    assert answer.status_code == 422
    assert words in answer.json()["message"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": {"name": "other"}}, "spec.model.name"),
        ({"model": {"cache": {"size": "1Gi"}}}, "spec.model.cache"),
        ({"store": {"type": "Memory"}}, "spec.store.type"),
        ({"store": {"etcd": {"members": 3}}}, "spec.store.etcd"),
        ({"store": {"etcd": {"size": "20Gi"}}}, "spec.store.etcd"),
        ({"store": {"etcd": {"storageClassName": "ssd"}}}, "spec.store.etcd"),
        ({"tls": {"issuer": "None"}}, "spec.tls.issuer"),
        ({"tls": {"engines": True}}, "spec.tls.engines"),
    ],
)
def test_immutable_fields_are_refused(admin: Kube, namespace: str, change: Any, field: str) -> None:
    assert create(admin, namespace, cluster(MINIMAL)).status_code == 201
    answer = admin.ask("PATCH", f"{CLUSTERS.format(namespace)}/demo", {"spec": change}, MERGE)
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["message"]
    assert "cannot be changed: create a new AgentServingCluster" in answer.json()["message"]


CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.agentserving.io"


def _specs(crd: dict[str, Any]) -> list[dict[str, Any]]:
    """The schema of `spec` in each version."""
    return [each["schema"]["openAPIV3Schema"]["properties"]["spec"] for each in crd["spec"]["versions"]]


def _default_issuer(admin: Kube, issuer: str) -> None:
    """Changes the default in the CRD, as an upgrade does."""
    crd = admin.get(CRD)
    for spec in _specs(crd):
        tls = spec["properties"]["tls"]
        tls["default"]["issuer"] = tls["properties"]["issuer"]["default"] = issuer
    admin.must("PUT", CRD, crd)


def test_a_cluster_from_before_tls_was_the_default_stays_without(admin: Kube, namespace: str) -> None:
    def of_a_new_one() -> str:
        return str(create(admin, namespace, cluster(MINIMAL, "probe"), dryRun="All").json()["spec"]["tls"]["issuer"])

    assert of_a_new_one() == "Operator"
    _default_issuer(admin, "None")
    try:
        eventually("the old CRD is served", lambda: of_a_new_one() == "None")
        assert create(admin, namespace, cluster(MINIMAL, "old")).status_code == 201
    finally:
        _default_issuer(admin, "Operator")
    eventually("the new CRD is served", lambda: of_a_new_one() == "Operator")
    path = f"{CLUSTERS.format(namespace)}/old"
    assert admin.get(path)["spec"]["tls"] == {"issuer": "None", "engines": False}
    changed = admin.must("PATCH", path, {"spec": {"engine": {"replicas": 2}}}, MERGE)
    assert changed["spec"]["tls"] == {"issuer": "None", "engines": False}


def _without_engines(admin: Kube) -> list[dict[str, Any]]:
    """Takes the field `tls.engines` out of the CRD, as an older one is; returns the schemas that were there."""
    crd = admin.get(CRD)
    before = copy.deepcopy(_specs(crd))
    for spec in _specs(crd):
        tls = spec["properties"]["tls"]
        del tls["properties"]["engines"], tls["default"]["engines"]
        for each in (spec, tls):
            rules = each["x-kubernetes-validations"]
            each["x-kubernetes-validations"] = [rule for rule in rules if ".engines" not in rule["rule"]]
    admin.must("PUT", CRD, crd)
    return before


def _set_specs(admin: Kube, specs: list[dict[str, Any]]) -> None:
    crd = admin.get(CRD)
    for version, spec in zip(crd["spec"]["versions"], specs, strict=True):
        version["schema"]["openAPIV3Schema"]["properties"]["spec"] = spec
    admin.must("PUT", CRD, crd)


def test_a_cluster_from_before_engines_could_have_tls_can_still_be_changed(admin: Kube, namespace: str) -> None:
    def of_a_new_one() -> Any:
        return create(admin, namespace, cluster(MINIMAL, "probe"), dryRun="All").json()["spec"]["tls"].get("engines")

    before = _without_engines(admin)
    try:
        eventually("the old CRD is served", lambda: of_a_new_one() is None)
        assert create(admin, namespace, cluster(MINIMAL, "old")).status_code == 201
    finally:
        _set_specs(admin, before)
    eventually("the new CRD is served", lambda: of_a_new_one() is False)
    path = f"{CLUSTERS.format(namespace)}/old"
    changed = admin.must("PATCH", path, {"spec": {"engine": {"replicas": 2}}}, MERGE)
    assert changed["spec"]["tls"] == {"issuer": "Operator", "engines": False}
    assert admin.ask("PATCH", path, {"spec": {"tls": {"engines": True}}}, MERGE).status_code == 422


def test_other_fields_can_be_changed(admin: Kube, namespace: str) -> None:
    create(admin, namespace, cluster(MINIMAL))
    etcd = {"quotaMiB": 512, "resources": {"limits": {"memory": "2Gi"}}}
    change = {"engine": {"replicas": 3}, "scheduling": {"policy": "plas"}, "store": {"etcd": etcd}}
    found = admin.must("PATCH", f"{CLUSTERS.format(namespace)}/demo", {"spec": change}, MERGE)
    assert (found["spec"]["engine"]["replicas"], found["metadata"]["generation"]) == (3, 2)


def test_levels_must_ascend(admin: Kube, namespace: str) -> None:
    levels = [{"upperBoundMilliseconds": bound, "quantumMilliseconds": 1} for bound in (2, 1)]
    spec = {**MINIMAL, "scheduling": {"policy": "custom", "custom": {"levels": levels}}}
    answer = create(admin, namespace, cluster(spec), dryRun="All")
    assert "levels must be in ascending order" in answer.json()["message"]
    spec["scheduling"]["custom"]["levels"] = levels[::-1]
    assert create(admin, namespace, cluster(spec), dryRun="All").status_code == 201


def test_quantities_are_numbers_or_strings(admin: Kube, namespace: str) -> None:
    amounts = {"cpu": 8, "memory": "64Gi"}
    spec = {**MINIMAL, "engine": {"resources": {"requests": amounts}, "sharedMemory": 1073741824}}
    answer = create(admin, namespace, cluster(spec))
    assert answer.status_code == 201, answer.text
    parsed = parse(ClusterSpec, answer.json()["spec"])
    assert parsed.engine.resources.requests is not None
    assert (parsed.engine.resources.requests.cpu, parsed.engine.shared_memory) == ("8", "1073741824")
    for wrong in (-1, "many", 1.5, True):
        spec["engine"] = {"resources": {"requests": {"cpu": wrong}}}
        assert create(admin, namespace, cluster(spec, "other"), dryRun="All").status_code == 422, wrong


def test_it_scales(admin: Kube, namespace: str) -> None:
    create(admin, namespace, cluster(MINIMAL))
    path = f"{CLUSTERS.format(namespace)}/demo"
    status = {"selector": "a=b", "engines": {"replicas": 1, "ready": 1, "updated": 1, "summary": "1/1"}}
    admin.must("PATCH", f"{path}/status", {"status": status}, MERGE)
    scale = admin.get(f"{path}/scale")
    assert (scale["spec"]["replicas"], scale["status"]) == (1, {"replicas": 1, "selector": "a=b"})
    admin.must("PATCH", f"{path}/scale", {"spec": {"replicas": 4}}, MERGE)
    assert admin.get(path)["spec"]["engine"]["replicas"] == 4
    assert admin.ask("PATCH", f"{path}/scale", {"spec": {"replicas": 257}}, MERGE).status_code == 422


def test_kubectl_prints_its_columns_and_accepts_its_short_names(admin: Kube, namespace: str) -> None:
    create(admin, namespace, cluster(MINIMAL))
    table = admin._http.get(
        CLUSTERS.format(namespace), headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    ).json()
    names = [each["name"] for each in table["columnDefinitions"]]
    assert names == ["Name", "Ready", "Reason", "URL", "Policy", "Engines", "Programs", "Age"]
    served = admin.get("/apis/agentserving.io/v1alpha1")["resources"]
    resource = next(each for each in served if each["name"] == "agentservingclusters")
    assert (resource["shortNames"], resource["categories"]) == (["asc"], ["agentserving"])
