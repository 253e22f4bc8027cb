"""kubectl and helm as a user has them, and ports of the cluster on this machine. KUBECONFIG says which cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BOUND_S = 120.0


def run(*argv: str, text: str | None = None, bound_s: float = BOUND_S) -> str:
    """stdout. AssertionError with what the command said when it fails."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=bound_s, check=False)
    assert done.returncode == 0, f"{' '.join(argv[:6])}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


def _ctr(node: str) -> list[str]:
    """containerd's own client on a node: the one thing here that is not the same on every cluster."""
    if os.environ.get("CLUSTER") == "kind":
        return ["docker", "exec", node, "ctr", "-n", "k8s.io"]
    state = Path(os.environ["KUBECONFIG"]).parent
    return ["ctr", "-a", str(state / "nodes" / node.removeprefix("node") / "containerd.sock"), "-n", "k8s.io"]


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def __call__(self, *argv: str, text: str | None = None, bound_s: float = BOUND_S) -> str:
        return run("kubectl", "-n", self.namespace, *argv, text=text, bound_s=bound_s)

    def apply(self, *manifests: dict[str, Any]) -> None:
        """As one JSON list: kubectl takes a long text that begins as JSON for JSON all through, separators and all."""
        self("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))

    def get(self, *what: str) -> Any:
        """An object, or a list of them."""
        return json.loads(self("get", *what, "-o", "json"))

    def find(self, kind: str, labels: str = "") -> list[Any]:
        """Items by labels."""
        items: list[Any] = self.get(kind, *(("-l", labels) if labels else ()))["items"]
        return items

    def patch(self, what: str, patch: dict[str, Any]) -> None:
        """What `kubectl edit` sends."""
        self("patch", what, "--type=merge", "-p", json.dumps(patch))

    def take_away(self, pod: str) -> None:
        """At once for the API server: another one is made while this one may still run."""
        self("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")

    def crash(self, pod: str, container: str) -> None:
        """SIGKILL: no drain, no last words. The kubelet starts it again."""
        self.signal(pod, container, "KILL")

    def signal(self, pod: str, container: str, name: str) -> None:
        """To its main process, from outside: of its own namespace it would take neither KILL nor STOP."""
        found = self.get(f"pod/{pod}")
        started = [*found["status"].get("initContainerStatuses", []), *found["status"]["containerStatuses"]]
        (identity,) = [each["containerID"] for each in started if each["name"] == container]
        run(*_ctr(found["spec"]["nodeName"]), "task", "kill", "-s", name, identity.removeprefix("containerd://"))

    @contextmanager
    def forward(self, target: str, port: int) -> Iterator[str]:
        """host:port on this machine that leads to one of the target's pods, while that lives."""
        argv = ["kubectl", "-n", self.namespace, "port-forward", target, f":{port}"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            # It tells of every connection: somebody has to read that.
            reader = threading.Thread(target=process.stdout.read)
            try:
                said = process.stdout.readline()
                found = re.search(r"127\.0\.0\.1:(\d+) ", said)
                assert found, f"{' '.join(argv)}: {said}"
                reader.start()
                yield f"127.0.0.1:{found[1]}"
            finally:
                process.kill()
                if reader.ident is not None:
                    reader.join()


def conditions(cluster: dict[str, Any]) -> dict[str, str]:
    """status of each condition, by type."""
    return {each["type"]: each["status"] for each in cluster.get("status", {}).get("conditions", [])}


def is_settled(cluster: dict[str, Any]) -> bool:
    """The spec as it is now is in force, and nothing is under way."""
    status, found = cluster.get("status", {}), conditions(cluster)
    current = status.get("observedGeneration") == cluster["metadata"]["generation"]
    return current and found.get("Ready") == "True" and found.get("Progressing") == "False"
