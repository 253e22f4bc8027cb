"""The AgentServingCluster that cases work on."""

from __future__ import annotations

from typing import Any

import yaml
from kube.client import eventually
from kube.kubectl import Kubectl, is_settled
from kube.paths import ROOT

READY_BOUND_S = 180.0


def simulator_spec() -> dict[str, Any]:
    """examples/cluster-simulator.yaml with etcd and without TLS, and requests that fit a node of two cores."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples/cluster-simulator.yaml").read_text())
    found["spec"]["store"] = {"type": "Etcd", "etcd": {"size": "1Gi"}}
    # Cases speak to control planes as programs without certificates do; test_tls.py is about clusters with TLS.
    found["spec"]["tls"] = {"issuer": "None"}
    for part in ("controlPlane", "gateway"):
        found["spec"].setdefault(part, {})["resources"] = {"requests": {"cpu": "50m", "memory": "64Mi"}}
    return found


class Demo:
    """The AgentServingCluster `demo`."""

    name = "demo"

    def __init__(self, kubectl: Kubectl, ready_after_s: float | None = None) -> None:
        self.kubectl, self.ready_after_s = kubectl, ready_after_s
        self.url = f"http://{self.name}-gateway.{kubectl.namespace}.svc/v1"
        self.control_plane = f"{self.name}-control-plane.{kubectl.namespace}.svc:7070"

    def live(self) -> dict[str, Any]:
        """The live object."""
        found: dict[str, Any] = self.kubectl.get("asc", self.name)
        return found

    def patch(self, spec: dict[str, Any]) -> None:
        """Changes the spec."""
        self.kubectl.patch(f"asc/{self.name}", {"spec": spec})

    def until_settled(self, bound_s: float = READY_BOUND_S) -> dict[str, Any]:
        """Waits until it is Ready for the latest generation, without a rollout in progress."""
        found: dict[str, Any] = eventually(f"{self.name} is settled", self._settled, bound_s)
        return found

    def _settled(self) -> dict[str, Any] | None:
        found = self.live()
        return found if is_settled(found) else None

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Pods of one component, by name."""
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        return sorted(self.kubectl.find("pods", labels), key=lambda pod: str(pod["metadata"]["name"]))
