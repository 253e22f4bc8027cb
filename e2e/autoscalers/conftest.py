"""The operator and a small cluster that another autoscaler scales. Each module installs its autoscaler."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kube import agents, prometheus
from kube.demo import Demo, new_key
from kube.kubectl import Kubectl
from kube.release import install

LITTLE: dict[str, Any] = {"resources": {"requests": {"cpu": "25m", "memory": "64Mi"}}}
HOLD_S = 180


def spec(namespace: str, **autoscaling: Any) -> dict[str, Any]:
    """One small engine with room for 8,192 tokens of context; another scaler decides, between `min` and two."""
    bounds = {"scaler": "External", "max": 2, "scaleInSeconds": 15, "idleSeconds": 15, "holdSeconds": HOLD_S}
    return {
        "apiVersion": "agentserving.io/v1alpha1", "kind": "AgentServingCluster",
        "metadata": {"name": "demo", "namespace": namespace},
        "spec": {
            "model": {"name": "tiny"}, "store": {"type": "Memory"}, "controlPlane": LITTLE,
            "network": {"metricsNamespaces": ["monitoring", "keda"]},
            "gateway": {**LITTLE, "drainSeconds": 0},
            "engine": {
                **LITTLE, "type": "Simulator", "simulator": {"numBlocks": 512, "speedPercent": 50}, "drainSeconds": 60,
                "autoscaling": {**bounds, **autoscaling},
            },
        },
    }  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def operator() -> Kubectl:
    """Installed by helm; prevents the use of some other cluster by accident."""
    assert os.environ.get("KUBECONFIG"), "these cases need a cluster of their own: run `make e2e-autoscalers`"
    # `kubectl agentserving` is a file of that name on PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return install()


@pytest.fixture(scope="session")
def prometheus_url(operator: Kubectl) -> Iterator[str]:
    """A Prometheus that scrapes as the chart's PodMonitors say."""
    kubectl = Kubectl(prometheus.NAMESPACE)
    kubectl.apply(*prometheus.objects())
    kubectl("rollout", "status", "deployment/prometheus", "--timeout=2m", bound_s=130)
    yield prometheus.URL
    kubectl("delete", "namespace", prometheus.NAMESPACE, "--wait=true", bound_s=300)


@pytest.fixture(scope="module")
def make_demo(operator: Kubectl) -> Iterator[Callable[..., Demo]]:
    """Makes the cluster in a namespace, Ready, with agents; it goes when the module ends."""
    made: list[Kubectl] = []

    def make(namespace: str, **autoscaling: Any) -> Demo:
        kubectl = Kubectl(namespace)
        made.append(kubectl)
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        kubectl.apply(spec(namespace, **autoscaling))
        kubectl("wait", "--for=condition=Ready", "asc/demo", "--timeout=5m", bound_s=310)
        key = new_key(kubectl, "default", "--for", "e2e")
        agents.start(kubectl, key)
        return Demo(kubectl, key=key)

    yield make
    for kubectl in made:
        kubectl("delete", "namespace", kubectl.namespace, "--wait=true", bound_s=300)
