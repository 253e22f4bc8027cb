"""The batch service of a cluster comes and goes with its field, and needs keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from agentserving_operator.reconcile import VisitResult
from kube.client import Kube
from kube.server import OPERATOR, ApiServer
from kube.visiting import change, children, conditions, live, make, visit, wanted

WITH_KEYS = {"model": {"name": "m"}, "engine": {"type": "Simulator", "replicas": 2}}


@pytest.fixture
def operator(server: ApiServer) -> Path:
    return server.kubeconfig(OPERATOR)


def test_it_comes_and_goes_with_its_field(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace, WITH_KEYS)
    assert visit(operator, namespace) is VisitResult.SETTLED
    before = wanted(children(admin, namespace))
    assert not [name for _, name in before if name.startswith("demo-batches")]
    change(admin, namespace, {"batches": {"enabled": True, "size": "5Gi"}})
    assert visit(operator, namespace) is VisitResult.SETTLED
    found = children(admin, namespace)
    assert sorted(kind for kind, name in found if name == "demo-batches") == [
        "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount", "StatefulSet",
    ]  # fmt: skip
    assert "--batches" in str(found["Deployment", "demo-gateway"])
    change(admin, namespace, {"batches": {"enabled": False}})
    assert visit(operator, namespace) is VisitResult.SETTLED
    assert wanted(children(admin, namespace)) == before


def test_without_keys_the_spec_is_refused_with_the_field(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace, {**WITH_KEYS, "auth": {"clients": "None"}, "batches": {"enabled": True}})
    assert visit(operator, namespace) is not VisitResult.SETTLED
    ready = conditions(live(admin, namespace))["Ready"]
    assert ready["status"] == "False"
    assert "batches.enabled" in ready["message"]
