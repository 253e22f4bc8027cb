"""Both versions of the API on a real API server: one schema, nothing lost between them, and a way back to one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentserving_operator.reconcile import VisitResult
from agentserving_operator.spec import crd
from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.parsing import parse, plain
from kube.client import CLUSTERS, TENANTS, Kube, eventually
from kube.kubectl import run
from kube.paths import ROOT
from kube.server import ADMIN, OPERATOR, ApiServer, find_program
from kube.visiting import MERGE, SIMULATED, children, play_controllers, visit
from support.spec_samples import INVALID, VALID

BOTH = (crd.VERSION, crd.BETA)
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
APPLY = "application/apply-patch+yaml"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def other(version: str) -> str:
    return BOTH[1 - BOTH.index(version)]


def at(version: str, collection: str, namespace: str, name: str = "") -> str:
    path = collection.format(namespace).replace(f"/{crd.VERSION}/", f"/{version}/")
    return f"{path}/{name}" if name else path


def body(version: str, spec: Any, name: str = "demo", kind: str = crd.KIND) -> dict[str, Any]:
    return {"apiVersion": f"{crd.GROUP}/{version}", "kind": kind, "metadata": {"name": name}, "spec": spec}


def make(admin: Kube, namespace: str, version: str, spec: Any, name: str = "demo") -> dict[str, Any]:
    path = at(version, CLUSTERS, namespace)
    found: dict[str, Any] = admin.must("POST", path, body(version, spec, name), fieldValidation="Strict")
    return found


def make_tenant(admin: Kube, namespace: str, version: str) -> None:
    spec = {"clusterName": "demo", "weight": 2}
    admin.must("POST", at(version, TENANTS, namespace), body(version, spec, "research", crd.TENANT_KIND))


def read(admin: Kube, path: str) -> dict[str, Any]:
    """All but the version, which it checks."""
    found: dict[str, Any] = admin.get(path)
    assert found.pop("apiVersion") == "/".join(path.split("/")[2:4])
    return found


@pytest.mark.parametrize("written", BOTH)
def test_the_other_version_reads_all_of_an_object_and_writes_it_back_unchanged(
    admin: Kube, namespace: str, written: str
) -> None:
    for number, spec in enumerate(VALID):
        name = f"demo-{number}"
        made = make(admin, namespace, written, spec, name)
        assert made["spec"] == plain(parse(ClusterSpec, spec))
        path = at(other(written), CLUSTERS, namespace, name)
        found = read(admin, path)
        assert found == read(admin, at(written, CLUSTERS, namespace, name))
        again = admin.must("PUT", path, {**found, "apiVersion": f"{crd.GROUP}/{other(written)}"})
        assert (again["spec"], again["metadata"]["generation"]) == (made["spec"], 1)
    make_tenant(admin, namespace, written)
    found = read(admin, at(other(written), TENANTS, namespace, "research"))
    assert found == read(admin, at(written, TENANTS, namespace, "research"))


def test_the_new_version_refuses_what_the_old_one_refuses(admin: Kube, namespace: str) -> None:
    for spec, field, words in INVALID:
        path = at(crd.BETA, CLUSTERS, namespace)
        answer = admin.ask("POST", path, body(crd.BETA, spec), fieldValidation="Strict", dryRun="All")
        assert answer.status_code in (400, 422), (spec, words)
        assert field in answer.json()["message"], (words, answer.text)


@pytest.mark.parametrize("written", BOTH)
def test_the_operator_looks_after_objects_of_both_versions(
    server: ApiServer, admin: Kube, namespace: str, written: str
) -> None:
    operator = server.kubeconfig(OPERATOR)
    make(admin, namespace, written, SIMULATED)
    make_tenant(admin, namespace, written)
    visit(operator, namespace)
    play_controllers(admin, namespace)
    visit(operator, namespace)
    for collection, name in ((CLUSTERS, "demo"), (TENANTS, "research")):
        old, new = (read(admin, at(version, collection, namespace, name)) for version in BOTH)
        assert old == new
        assert "Ready" in {each["type"] for each in new["status"]["conditions"]}
    # Whatever the chart is rolled back to knows this version.
    owners = [each["metadata"]["ownerReferences"][0]["apiVersion"] for each in children(admin, namespace).values()]
    assert set(owners) == {crd.API_VERSION}


@pytest.mark.parametrize("version", BOTH)
def test_both_versions_scale_and_have_a_status_of_their_own(
    server: ApiServer, admin: Kube, namespace: str, version: str
) -> None:
    make(admin, namespace, other(version), SIMULATED)
    path = at(version, CLUSTERS, namespace, "demo")
    status = {"selector": "a=b", "engines": {"replicas": 1, "ready": 1, "updated": 1, "summary": "1/1"}}
    found = admin.must("PATCH", f"{path}/status", {"status": status, "spec": {"engine": {"replicas": 9}}}, MERGE)
    assert (found["spec"]["engine"]["replicas"], found["status"]) == (2, status)
    scale = admin.must("PATCH", f"{path}/scale", {"spec": {"replicas": 4}}, MERGE)
    assert (scale["spec"], scale["status"]) == ({"replicas": 4}, {"replicas": 1, "selector": "a=b"})
    assert admin.ask("PATCH", f"{path}/scale", {"spec": {"replicas": 257}}, MERGE).status_code == 422
    assert visit(server.kubeconfig(OPERATOR), namespace) is VisitResult.SETTLED
    assert children(admin, namespace)["StatefulSet", "demo-engine"]["spec"]["replicas"] == 4


def test_both_versions_print_the_same_columns(admin: Kube, namespace: str) -> None:
    make(admin, namespace, crd.BETA, SIMULATED)
    make_tenant(admin, namespace, crd.BETA)
    for collection, third in ((CLUSTERS, "Reason"), (TENANTS, "Weight")):
        old, new = (
            admin.ask("GET", at(version, collection, namespace), headers={"Accept": TABLE}).json() for version in BOTH
        )
        assert [each["name"] for each in new["columnDefinitions"]][2] == third
        assert new["columnDefinitions"] == old["columnDefinitions"]
        assert [each["cells"] for each in new["rows"]] == [each["cells"] for each in old["rows"]]


@pytest.fixture
def kubectl(server: ApiServer, namespace: str, tmp_path: Path) -> Callable[..., str]:
    """The real one; its cache is its own, since ports and with them addresses come back."""
    options = (f"--kubeconfig={server.kubeconfig(ADMIN)}", f"--cache-dir={tmp_path}", "-n", namespace)
    return lambda *argv, text=None: run(find_program("kubectl"), *options, *argv, text=text)


def test_kubectl_gets_applies_and_explains_both(kubectl: Callable[..., str]) -> None:
    example = yaml.safe_load((ROOT / "examples/cluster-simulator.yaml").read_text())
    kind = f"{crd.PLURAL}.{{}}.{crd.GROUP}"
    assert "created" in kubectl("apply", "-f", "-", text=json.dumps(example))
    example["apiVersion"] = f"{crd.GROUP}/{crd.BETA}"
    example["spec"]["gateway"] = {"replicas": 3}
    assert "configured" in kubectl("apply", "-f", "-", text=json.dumps(example))
    assert "unchanged" in kubectl("apply", "-f", "-", text=json.dumps(example))
    del example["spec"]["gateway"]
    example["apiVersion"] = crd.API_VERSION
    assert "configured" in kubectl("apply", "-f", "-", text=json.dumps(example))
    for version in BOTH:
        found = json.loads(kubectl("get", kind.format(version), "demo", "-o", "json"))
        assert (found["apiVersion"], found["spec"]["gateway"]["replicas"]) == (f"{crd.GROUP}/{version}", 1)
        explained = kubectl("explain", "asc.spec.model.name", f"--api-version={crd.GROUP}/{version}")
        assert "as in vLLM's --model" in explained
        assert f"VERSION:    {version}" in explained
    # Without a version, kubectl takes the most stable one.
    assert f"VERSION:    {crd.BETA}" in kubectl("explain", "asc")


@pytest.fixture
def rolled_back(admin: Kube) -> Iterator[Callable[[], None]]:
    """Replaces the CRDs by those of a chart from before v1beta1; at the end both versions are served again."""

    def replace(versions: Callable[[list[Any]], list[Any]]) -> None:
        for plural, definition in crd.definitions().items():
            path = f"{CRDS}/{plural}.{crd.GROUP}"
            live = admin.get(path)
            live["spec"] = {**definition["spec"], "versions": versions(definition["spec"]["versions"])}
            admin.must("PUT", path, live)

    def served(count: int) -> bool:
        found = [admin.ask("GET", f"/apis/{crd.GROUP}/{crd.BETA}/{plural}") for plural in crd.definitions()]
        return [each.status_code for each in found].count(200) == count

    def back() -> None:
        replace(lambda versions: [each for each in versions if each["name"] == crd.VERSION])
        eventually("v1beta1 is gone", lambda: served(0))

    yield back
    replace(lambda versions: versions)
    eventually("v1beta1 is served again", lambda: served(2))


def test_a_rollback_of_the_crds_loses_nothing_that_was_written_as_v1beta1(
    server: ApiServer, admin: Kube, namespace: str, rolled_back: Callable[[], None]
) -> None:
    make(admin, namespace, crd.BETA, SIMULATED)
    make_tenant(admin, namespace, crd.BETA)
    applied = body(crd.BETA, {**SIMULATED, "gateway": {"replicas": 3}}, "applied")
    admin.must("PATCH", at(crd.BETA, CLUSTERS, namespace, "applied"), applied, APPLY, fieldManager="me")
    operator = server.kubeconfig(OPERATOR)
    visit(operator, namespace)
    visit(operator, namespace, "applied")
    # No operator has seen it when the chart is rolled back.
    make(admin, namespace, crd.BETA, SIMULATED, "unseen")
    objects = ((CLUSTERS, "demo"), (CLUSTERS, "applied"), (TENANTS, "research"))
    before = [read(admin, at(crd.BETA, *each[:1], namespace, each[1])) for each in objects]

    rolled_back()

    assert [read(admin, at(crd.VERSION, *each[:1], namespace, each[1])) for each in objects] == before
    # By server-side apply, which fails where managedFields name v1beta1.
    play_controllers(admin, namespace)
    visit(operator, namespace)
    changed = at(crd.VERSION, CLUSTERS, namespace, "demo")
    assert read(admin, changed)["status"] != before[0]["status"]
    admin.must("PATCH", changed, {"spec": {"engine": {"replicas": 3}}}, MERGE)
    visit(operator, namespace)
    assert children(admin, namespace)["StatefulSet", "demo-engine"]["spec"]["replicas"] == 3
    assert read(admin, changed)["status"]["observedGeneration"] == 2
    # Server-side apply as the earlier chart's users do it.
    applied = body(crd.VERSION, {**SIMULATED, "gateway": {"replicas": 4}}, "applied")
    path = at(crd.VERSION, CLUSTERS, namespace, "applied")
    answer = admin.must("PATCH", path, applied, APPLY, fieldManager="me")
    assert answer["spec"]["gateway"]["replicas"] == 4
    # The step of docs/upgrade.md, `kubectl annotate`.
    unseen = at(crd.VERSION, CLUSTERS, namespace, "unseen")
    admin.must("PATCH", unseen, {"metadata": {"annotations": {"rolled-back": "true"}}}, MERGE)
    visit(operator, namespace, "unseen")
    assert read(admin, unseen)["status"]["observedGeneration"] == 1


def test_with_v1beta1_stored_there_would_be_no_way_back(admin: Kube) -> None:
    """Why storage moves a release later: the API server refuses a CRD without a version that it may have stored."""
    moved = copy.deepcopy(crd.definitions()[crd.TENANT_PLURAL])
    group = "moved.example.com"
    moved["metadata"] = {"name": f"{crd.TENANT_PLURAL}.{group}"}
    moved["spec"]["group"] = group
    for each in moved["spec"]["versions"]:
        each["storage"] = each["name"] == crd.BETA
    admin.define(moved)
    path = f"{CRDS}/{moved['metadata']['name']}"
    try:
        live = admin.get(path)
        (old,) = [each for each in live["spec"]["versions"] if each["name"] == crd.VERSION]
        live["spec"]["versions"] = [{**old, "storage": True}]
        answer = admin.ask("PUT", path, live)
        assert answer.status_code == 422
        assert "status.storedVersions[0]" in answer.json()["message"]
        assert f"missing from spec.versions; {crd.BETA}" in answer.json()["message"]
    finally:
        admin.must("DELETE", path)
