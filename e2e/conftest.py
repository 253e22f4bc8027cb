"""One API server for a run; each test has a namespace of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import yaml
from kube.client import Kube
from kube.paths import CHART
from kube.server import OPERATOR, ApiServer

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[ApiServer]:
    """An API server with the CRDs; the operator's user has the rights that the chart grants."""
    made = ApiServer()
    try:
        made.start()
        for plural in ("agentservingclusters", "agentservingtenants"):
            made.admin.define(yaml.safe_load((CHART / f"files/{plural}.yaml").read_text()))
        _grant(made.admin)
        yield made
    finally:
        made.close()


def _grant(admin: Kube) -> None:
    rules = yaml.safe_load((CHART / "files/operator-rules.yaml").read_text())
    rbac, named = "rbac.authorization.k8s.io", {"name": OPERATOR}
    role = {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": named, "rules": rules}
    binding = {
        "apiVersion": f"{rbac}/v1", "kind": "ClusterRoleBinding", "metadata": named,
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": OPERATOR},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": OPERATOR}],
    }  # fmt: skip
    admin.must("POST", f"/apis/{rbac}/v1/clusterroles", role)
    admin.must("POST", f"/apis/{rbac}/v1/clusterrolebindings", binding)


@pytest.fixture
def admin(server: ApiServer) -> Kube:
    """A client with all rights."""
    return server.admin


@pytest.fixture
def namespace(admin: Kube) -> str:
    """A new namespace that enforces Pod Security `restricted`."""
    return admin.namespace(f"e2e-{next(_numbers)}", **{"pod-security.kubernetes.io/enforce": "restricted"})
