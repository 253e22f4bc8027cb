"""One operator and one cluster for the whole run, installed as in the README; cases leave them as they found them.

Files run in the order of their names: the first follows a new user's steps, the last uninstalls everything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from kube import agents
from kube.demo import Demo, new_key, simulator_spec
from kube.kubectl import Kubectl
from kube.release import install
from kube.versions import OPERATOR_NAMESPACE

# `kubectl agentserving` is a file of that name on PATH.
HERE = Path(sys.executable).parent
NAMESPACE = "e2e-agents"


# Collected when a case fails, because the cluster may be gone before anyone can look.
LOOK = (
    ("get", "asc,pods", "-A", "-o", "wide"),
    ("get", "events", "-A", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"),
    ("-n", OPERATOR_NAMESPACE, "logs", "deploy/agentserving-operator", "--tail=40"),
    ("-n", NAMESPACE, "logs", "deploy/demo-control-plane", "--tail=40"),
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Adds the state of the cluster to the report of a failed case."""
    report = yield
    if report.failed and os.environ.get("KUBECONFIG"):
        for argv in LOOK:
            done = subprocess.run(("kubectl", *argv), capture_output=True, text=True, timeout=30, check=False)
            report.sections.append((f"kubectl {' '.join(argv)}", done.stdout[-6000:] + done.stderr[-500:]))
    return report


@pytest.fixture(scope="session", autouse=True)
def cluster_there() -> None:
    """Prevents the use of some other cluster by accident."""
    assert os.environ.get("KUBECONFIG"), "these cases need a cluster of their own: run `make e2e`"


@pytest.fixture(scope="session")
def operator(cluster_there: None) -> Kubectl:
    """The operator, and where `helm test` finds the cluster."""
    return install("--set", f"test.namespace={NAMESPACE}")


@pytest.fixture(scope="session")
def demo(operator: Kubectl) -> Demo:
    """A cluster that is Ready, in a namespace that enforces Pod Security `restricted`."""
    kubectl = Kubectl(NAMESPACE)
    namespace = {
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }  # fmt: skip
    kubectl.apply(namespace)
    new, began = not kubectl.find("asc"), time.monotonic()
    kubectl.apply(simulator_spec())
    kubectl("wait", "--for=condition=Ready", "asc/demo", "--timeout=5m", bound_s=310)
    ready_after_s = time.monotonic() - began if new else None
    key = new_key(kubectl, "default", "--for", "e2e")
    agents.start(kubectl, key)
    # For `helm test`.
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "agentserving-test"}}
    operator.apply({**secret, "stringData": {"key": key}})
    return Demo(kubectl, ready_after_s, key)


@pytest.fixture
def settled(demo: Demo) -> Demo:
    """The demo, without a rollout in progress."""
    demo.until_settled()
    return demo


@pytest.fixture
def plugin_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `pip install agentserving[cli]`."""
    monkeypatch.setenv("PATH", f"{HERE}{os.pathsep}{os.environ['PATH']}")
