"""Sources of a model on a real API server: pods as they are stored, applied once, and changed one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentserving_cli.kube.warming import warm_job
from agentserving_operator.api_server import path_of
from agentserving_operator.reconcile import VisitResult
from kube.client import CLUSTERS, Kube
from kube.server import OPERATOR, ApiServer
from kube.visiting import MERGE, SIMULATED, change, make, visit

WRITES = ("create", "patch", "update", "delete")
IMAGE = {"image": {"reference": "registry.test/llama:1", "path": "llama"}}
S3 = {"s3": {"uri": "s3://models/llama/v1", "endpoint": "http://minio.storage:9000", "secretName": "bucket"}}
SHARED = {"type": "ExistingClaim", "claimName": "models"}


@pytest.fixture
def operator(server: ApiServer) -> Path:
    return server.kubeconfig(OPERATOR)


def spec_of(**model: Any) -> dict[str, Any]:
    return {**SIMULATED, "model": {"name": "llama", **model}, "engine": {"accelerator": {"count": 0}}}


def engine_pods(admin: Kube, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = admin.get(path_of("StatefulSet", namespace, "demo-engine"))["spec"]["template"]["spec"]
    return found


def visited_twice(server: ApiServer, operator: Path, namespace: str) -> None:
    """The second visit, of an operator that remembers nothing, finds nothing to write."""

    def writes() -> int:
        mine = [e for e in server.audited() if e.get("objectRef", {}).get("namespace") == namespace]
        return len([e for e in mine if e["verb"] in WRITES])

    visit(operator, namespace)
    written = writes()
    for _ in range(2):
        assert visit(operator, namespace) is VisitResult.SETTLED
    assert writes() == written


def loaded(pods: dict[str, Any]) -> str:
    arguments = pods["containers"][0]["args"]
    return str(arguments[arguments.index("--model") + 1])


def admitted(admin: Kube, namespace: str, pods: dict[str, Any]) -> None:
    """Pod Security `restricted`, which the namespace enforces, admits such a pod."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": pods}
    admin.must("POST", f"/api/v1/namespaces/{namespace}/pods", pod, dryRun="All")


def test_an_image_is_a_volume_of_engine_pods(server: ApiServer, admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace, spec_of(source=IMAGE))
    visited_twice(server, operator, namespace)
    pods = engine_pods(admin, namespace)
    volumes = {each["name"]: each for each in pods["volumes"]}
    assert volumes["model-image"]["image"] == {"reference": "registry.test/llama:1", "pullPolicy": "IfNotPresent"}
    assert loaded(pods) == "/model-image/llama"
    admitted(admin, namespace, pods)


def test_objects_of_s3_are_downloaded_before_the_engine_starts_and_a_new_uri_is_rolled_out(
    server: ApiServer, admin: Kube, namespace: str, operator: Path
) -> None:
    make(admin, namespace, spec_of(source=S3, cache=SHARED))
    visited_twice(server, operator, namespace)
    pods = engine_pods(admin, namespace)
    (download,) = [each for each in pods["initContainers"] if each["name"] == "model"]
    assert download["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    admitted(admin, namespace, pods)
    first = loaded(pods)
    change(admin, namespace, {"model": {"source": {"s3": {"uri": "s3://models/llama/v2"}}}})
    visited_twice(server, operator, namespace)
    pods = engine_pods(admin, namespace)
    (download,) = [each for each in pods["initContainers"] if each["name"] == "model"]
    assert "s3://models/llama/v2" in download["args"]
    assert loaded(pods) != first


def test_the_rendered_job_is_a_job_and_its_pod_is_admitted(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace, spec_of(source=S3, cache=SHARED))
    visit(operator, namespace)
    job = warm_job(admin.get(path_of("StatefulSet", namespace, "demo-engine")), "s3://models/llama/v2")
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    made = admin.must("POST", path, job, dryRun="All", fieldValidation="Strict")
    admitted(admin, namespace, made["spec"]["template"]["spec"])


def test_a_source_is_replaced_in_one_step_and_two_are_refused(
    server: ApiServer, admin: Kube, namespace: str, operator: Path
) -> None:
    make(admin, namespace, spec_of(source=S3))
    visited_twice(server, operator, namespace)
    path = f"{CLUSTERS.format(namespace)}/demo"
    answer = admin.ask("PATCH", path, {"spec": {"model": {"source": IMAGE}}}, MERGE)
    assert answer.status_code == 422
    assert "exactly one of image and s3 is needed" in answer.json()["message"]
    change(admin, namespace, {"model": {"source": {**IMAGE, "s3": None}}})
    visited_twice(server, operator, namespace)
    assert "model" not in [each["name"] for each in engine_pods(admin, namespace)["initContainers"]]
    change(admin, namespace, {"model": {"source": None}})
    visited_twice(server, operator, namespace)
    assert loaded(engine_pods(admin, namespace)) == "llama"
