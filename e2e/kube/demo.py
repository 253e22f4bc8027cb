"""The AgentServingCluster that cases work on."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import agentserving
import yaml
from agentserving.transport.connection import Pem
from kube.client import eventually
from kube.kubectl import Kubectl, is_settled, run
from kube.paths import ROOT

READY_BOUND_S = 180.0


def simulator_spec() -> dict[str, Any]:
    """examples/cluster-simulator.yaml with etcd, and requests that fit a node of two cores."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples/cluster-simulator.yaml").read_text())
    found["spec"]["store"] = {"type": "Etcd", "etcd": {"size": "1Gi"}}
    for part in ("controlPlane", "gateway"):
        found["spec"].setdefault(part, {})["resources"] = {"requests": {"cpu": "50m", "memory": "64Mi"}}
    return found


def plugin(*words: str) -> str:
    """stdout of `kubectl agentserving`, wherever PATH leads."""
    return run(str(Path(sys.executable).with_name("kubectl-agentserving")), *words)


def new_key(kubectl: Kubectl, *words: str) -> str:
    """A key of the cluster in that namespace; `words` are those of `kubectl agentserving key create`."""
    return plugin("key", "create", *words, "-n", kubectl.namespace).strip()


class Demo:
    """The AgentServingCluster `demo`. `key`: of a client, "" = the cluster asks for none."""

    name = "demo"

    def __init__(self, kubectl: Kubectl, ready_after_s: float | None = None, key: str = "") -> None:
        self.kubectl, self.ready_after_s, self.key = kubectl, ready_after_s, key
        self.url = f"http://{self.name}-gateway.{kubectl.namespace}.svc/v1"
        service = "control-plane-clients" if key else "control-plane"
        self.control_plane = f"{self.name}-{service}.{kubectl.namespace}.svc:7070"

    @contextmanager
    def administrator(self) -> Iterator[agentserving.Client]:
        """A client with the administrator's certificate, through a forwarded port."""
        data = self.kubectl.get("secret", f"{self.name}-admin-tls")["data"]
        ca, cert, key = (base64.b64decode(data[each]) for each in ("ca.crt", "tls.crt", "tls.key"))
        settings = agentserving.Settings(tls=Pem(ca, cert, key, "localhost"))
        with (
            self.kubectl.forward("svc/demo-control-plane", 7070) as address,
            agentserving.Client(address, settings=settings) as client,
        ):
            yield client

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
